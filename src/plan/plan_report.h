#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/planner.h"

namespace zi {

/// All that `zero-infer plan` has to say.
struct PlanReport {
  std::string model;  // as it was given
  double parameters = 0;
  PlannedMachine machine;
  std::int64_t tokens = 0;  // of a sequence
  MemoryPlan plan;          // for the largest of batch_size
  std::size_t kv_token_bytes = 0;
  PassLimit pass;  // of that batch
  std::vector<BatchLimit> batches;
  std::vector<std::string> advice;
  std::vector<std::string> notes;  // what was assumed

  /// The sequence lengths for which lanes are shown: the usual ones and `tokens`, ascending.
  std::vector<std::int64_t> lengths() const;
  /// Planned memory of all ranks of a host, and of their shard files on its disk.
  std::size_t host_peak_bytes() const;
  std::size_t host_disk_bytes() const;
};

/// For people, some 80 columns wide.
std::string report_text(const PlanReport& report);
/// The same as one JSON object on a line: bytes, seconds, and rates in GB/s and TFLOP/s.
std::string report_json(const PlanReport& report);

/// `861 ms`, `2.26 s`, `5.10 us`: three digits.
std::string format_seconds(double seconds);
/// `0.0057`, `9.30`, `74.3`, `2380`: three digits or more.
std::string format_rate(double rate);

}  // namespace zi
