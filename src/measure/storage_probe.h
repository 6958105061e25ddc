#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "base/file_descriptor.h"
#include "offload/block_reader.h"
#include "zero_infer/device.h"

namespace zi {

/// How much of a storage is tried, and for how long.
struct StorageEffort {
  double fill_seconds = 3;                           // at most, for making the file larger
  double seconds = 0.4;                              // of each number in the table
  std::size_t most_bytes = std::size_t{2} << 30;     // of the file
  std::size_t least_bytes = std::size_t{128} << 20;  // must be possible; at least a block
  std::vector<int> depths = {1, 4, 16, 32};          // blocks in flight, ascending
  std::vector<std::size_t> sizes = {std::size_t{128} << 10, std::size_t{1} << 20,
                                    std::size_t{4} << 20};  // of a block, ascending
};

/// What a storage gave: bytes per second for each size (outer) and depth (inner) of the effort; 0
/// where this many blocks in flight would have taken too long.
struct StorageTable {
  std::vector<double> reads;
  std::vector<double> writes;
  std::string method;  // `io_uring + O_DIRECT`, `pread, buffered`, ...
};

/// A file in a directory whose storage is to be measured, without a name: it is gone with the
/// process, however that ends. It takes a quarter of the free space at most. Reads and writes go
/// through io_uring with O_DIRECT; where these are refused a warning says what is used.
class StorageProbe {
 public:
  /// Makes the file and looks whether it may become large enough. Throws IoError with what to do
  /// where the directory cannot be used.
  StorageProbe(const std::filesystem::path& directory, const StorageEffort& effort);

  /// Measures writes as a shard file gets them: into space that is reserved and was not written
  /// before, with an fdatasync at the end. Then reads of what was written. Throws IoError when one
  /// fails.
  StorageTable measure(Device& device);

 private:
  /// Turns O_DIRECT on; false where reads or writes of the storage refuse it. `page` is written.
  bool enable_direct(const std::byte* page) const;
  /// Empties the file and reserves its space again, where the file system can.
  void reserve_again() const;
  /// Writes what of the file there is time for; returns its bytes.
  std::size_t fill(BlockReader& writer) const;

  std::string path_;  // of the directory, for messages
  StorageEffort effort_;
  FileDescriptor file_;
  std::size_t most_bytes_ = 0;
};

}  // namespace zi
