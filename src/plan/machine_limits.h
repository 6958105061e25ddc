#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace zi {

/// Files and texts give rates in billions and trillions.
inline constexpr double kGiga = 1e9;
inline constexpr double kTera = 1e12;

/// A rate of transfers of one size, bytes per second.
struct SizedRate {
  std::size_t bytes = 0;
  double rate = 0;
};

/// A rate of a file's reads or writes with `depth` of them in flight, each of `bytes`.
struct StorageRate {
  int depth = 0;
  std::size_t bytes = 0;
  double rate = 0;
};

/// Products of `rows` rows with weights that are read once: weights per second in bytes, and
/// operations per second (two for each multiplication with its addition).
struct ProductRate {
  std::int64_t rows = 0;
  double weights_rate = 0;
  double operations_rate = 0;
};

/// How fast a machine's links and memories are, bare: what `zero-infer limits` measures and what a
/// plan divides by. Rates are bytes per second of one rank with all ranks of the world at work,
/// unless said otherwise; 0 or empty: not measured. Transfers between ranks, and storage, by size.
struct MachineLimits {
  std::string source;   // `measured on HOST, 2026-01-31`, or what the described machine is
  std::string backend;  // `cuda` or `cpu`
  std::string device;   // `NVIDIA H100 80GB HBM3`
  int world = 1;
  int ranks_per_host = 1;
  std::size_t device_bytes = 0;  // that a rank can have on its device; on the CPU backend 0
  std::size_t host_bytes = 0;    // that all ranks of a host can have together

  double copy_alone = 0;     // pinned memory to device, one rank at a time: the slowest of them
  double copy_together = 0;  // all ranks of a host at once: of each
  /// Received by a rank from all others of its host, by gathered bytes.
  std::vector<SizedRate> gather;
  /// Received by a host from the others, all of its ranks together, by gathered bytes.
  std::vector<SizedRate> network;
  double device_memory = 0;  // read and written by a copy: the sum of both
  double host_memory = 0;    // the same of the host's memory, all its cores
  std::string storage_path;
  std::string storage_method;      // `io_uring + O_DIRECT`: what was really used
  std::vector<StorageRate> reads;  // all ranks of a host together
  std::vector<StorageRate> writes;
  std::vector<ProductRate> products;  // by rows, ascending
  double seconds = 0;                 // that measuring took

  /// The best of `reads`; 0 without any.
  double best_read() const;
  /// The rate of gathers of about this many bytes: between two sizes, by interpolation over the
  /// logarithm.
  double gather_rate(std::size_t gathered_bytes) const;
  double network_rate(std::size_t gathered_bytes) const;

  /// One JSON object (rates in GB/s and TFLOP/s, names as above), and back. `from_json` throws
  /// ConfigError with `where` for anything that is no such object.
  std::string to_json() const;
  static MachineLimits from_json(const std::string& text, const std::string& where);
};

}  // namespace zi
