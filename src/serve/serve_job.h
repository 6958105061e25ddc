#pragma once

#include "base/link.h"
#include "engine/engine.h"
#include "serve/server.h"
#include "serve/shutdown.h"
#include "zero_infer/world.h"

namespace zi {

/// Collective. Answers requests until signals end it: see Shutdown. On ranks other than 0 only the
/// second signal counts: rank 0 has them leave. Returns 0 when every open request was answered,
/// else 128 + the signal. `server` is rank 0's, null elsewhere; `limits` are what each link can do,
/// in bytes per second, for GET /metrics. What the engine throws goes on after open requests have
/// got an error.
int serve_requests(World& world, const HostWatch& watch, Engine& engine, Server* server,
                   const PerLink<double>& limits, const StopSignals& signals);

}  // namespace zi
