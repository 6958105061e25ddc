#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/link.h"
#include "engine/pass_times.h"
#include "measure/link_use.h"
#include "zero_infer/run_config.h"
#include "zero_infer/weight_format.h"

namespace zi {

/// What all cells of a benchmark have in common.
struct BenchmarkSetting {
  int world = 1;
  std::string backend;
  std::string device;
  std::string model;
  std::string command;
  DType dtype = DType::kBFloat16;  // of the products
  WeightFormat block_format;
  WeightFormat head_format;  // of head and embedding
  std::vector<Tier> tiers;   // of the blocks
  Travel travel = Travel::kWeights;
  int cycles = 0;
  double ready_seconds = 0;  // from the start of the program
  double load_seconds = 0;   // of that, loading
};

/// What one batch size gave, of all ranks and cycles.
struct BenchmarkCell {
  std::int64_t batch = 0;     // lanes a rank
  std::string out_of_memory;  // why; then nothing below counts
  std::int64_t new_tokens = 0;
  std::int64_t passes = 0;
  double generate_seconds = 0;
  double first_seconds = 0;           // of the first generation, the warm-up
  PassSplit split;                    // of a pass, the ranks' mean
  std::vector<LinkUse> links;         // of rank 0
  std::size_t peak_host_bytes = 0;    // of a rank, the largest, so far
  std::size_t peak_device_bytes = 0;  // used on a GPU, the largest

  double pass_seconds() const { return generate_seconds / static_cast<double>(passes); }
  double token_seconds() const { return generate_seconds / static_cast<double>(new_tokens); }
  /// Of a pass, what is neither compute nor a wait of the compute stream: the host's turn between
  /// passes, and launches that came late.
  double host_seconds() const {
    return std::max(0.0, pass_seconds() - split.compute - split.waited.sum());
  }
};

/// The published statistics in their own words, and below them split, links and memory.
std::string text_of(const BenchmarkCell& cell, const BenchmarkSetting& setting);
/// One JSON object on a line.
std::string json_of(const BenchmarkCell& cell, const BenchmarkSetting& setting);

}  // namespace zi
