#pragma once

#include <chrono>
#include <functional>
#include <ostream>

#include "engine/engine.h"

namespace zi {

/// Collective. The protocol of the published BLOOM benchmark (Hugging Face, 2022): its eight
/// prompts repeated to fill the batch, greedy, end of text ignored, one warm-up and five cycles for
/// each batch size; its four statistics in its own words on stdout of rank 0, and as a JSON line
/// each to `file`
/// (--output FILE, open on rank 0), or on stdout alone with --output -. `start`: when the program
/// began. Returns the signal that ended it, or 0.
int run_benchmark(World& world, Engine& engine, std::chrono::steady_clock::time_point start,
                  const std::function<int()>& stop_signal, std::ostream& file);

}  // namespace zi
