#include "serve/serve_job.h"

#include <fmt/format.h>

#include <exception>

#include "zero_infer/log.h"

namespace zi {
namespace {

int exit_code(int signal) { return signal == 0 ? 0 : 128 + signal; }

}  // namespace

int serve_requests(World& world, const HostWatch& watch, Engine& engine, Server* server,
                   const PerLink<double>& limits, const StopSignals& signals) {
  Engine::Job job{.lanes = engine.config().batch_size.front(),
                  .options = engine.generation_options()};
  if (server == nullptr) {
    job.stop_signal = [&signals] { return signals.count() > 1 ? signals.last() : 0; };
    return exit_code(engine.generate(job).signal);
  }
  server->serve(engine, limits);
  log_info(fmt::format("serving {} at port {}", server->name(), server->port()));
  job.source = &server->source();
  job.sink = &server->sink();
  Shutdown shutdown(world, *server, watch, signals);
  job.stop_signal = [&shutdown] { return shutdown.leave(); };
  try {
    const int signal = shutdown.end(engine.generate(job).signal);
    server->stop();
    return exit_code(signal);
  } catch (const std::exception&) {
    shutdown.fail(ApiError::failed("the server failed; its log says why"));
    server->stop();
    throw;
  }
}

}  // namespace zi
