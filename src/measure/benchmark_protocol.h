#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "base/output_file.h"
#include "engine/engine.h"
#include "measure/trace.h"

namespace zi {

/// What the benchmark needs in addition to the settings.
struct BenchmarkRun {
  std::chrono::steady_clock::time_point start;  // of the program
  std::string command;                          // as it was called, for the results
  std::function<void()> on_ready;               // the model is loaded
  std::function<int()> stop_signal;             // 0, or the signal to leave for
  Trace* trace = nullptr;                       // told of every pass; may be null
  OutputFile* output = nullptr;                 // --output FILE, on rank 0; else null
};

/// Collective. The protocol of the published BLOOM benchmark (Hugging Face, 2022): its eight
/// prompts repeated to fill the batch, greedy, end of text ignored, one warm-up and five cycles for
/// each batch size. On stdout of rank 0 its four statistics in its own words and definitions:
///
/// - `Throughput per token including tokenize`: seconds of the five cycles over the tokens that all
///   ranks generated in them;
/// - `Start to ready to generate`: from the program's start until the model is loaded;
/// - `Tokenize and generate N tokens`: N of the five cycles, the seconds of the first generation of
///   this batch size, the warm-up;
/// - `Start to finish`: the sum of the last two.
///
/// Then where the time of a pass went, the rate of each link and what it can do (measured once,
/// after loading), and peak memory. A batch that does not fit is a cell that says so: the model is
/// then loaded for the largest that does. Each cell is also a line of JSON: in `output`, from the
/// first measured one on, or with --output - on stdout, which then gets nothing else. Returns the
/// signal that ended it, or 0. Throws MemoryError on all ranks when no batch size fits, and Error
/// when a prompt fails.
int run_benchmark(World& world, const RunConfig& config, const BenchmarkRun& run);

}  // namespace zi
