#pragma once

#include <string>

#include "engine/engine.h"

namespace zi {

/// Peak resident memory of this process, in bytes (getrusage).
std::size_t peak_memory_bytes();

/// Collective. What the job did, for people: rate, passes, what a pass moved and from where, each
/// rate with the limit measured in this run, memory with the plan. The text on rank 0, empty
/// elsewhere.
std::string summarize(World& world, Engine& engine, const Engine::Outcome& outcome);

}  // namespace zi
