#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

namespace zi {

/// What a disk gives without a loader, and how much of it this process used.

/// A range of a file.
struct FileRange {
  std::filesystem::path file;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

/// The .safetensors files of a directory, whole, by name. Throws IoError.
std::vector<FileRange> checkpoint_ranges(const std::filesystem::path& directory);

std::uint64_t total_bytes(const std::vector<FileRange>& ranges);

/// The part of rank `rank` of `world` when the ranges, one after the other, are cut into equal runs
/// of whole pages. Its ends are rounded outwards to pages.
std::vector<FileRange> share_of(const std::vector<FileRange>& ranges, int rank, int world);

/// The first `bytes` of the ranges.
std::vector<FileRange> first_of(const std::vector<FileRange>& ranges, std::uint64_t bytes);

/// Brings the files to the disk and out of the page cache. Throws IoError when pages stay there.
void evict(const std::vector<FileRange>& ranges);

/// Reads the files once through the page cache, so that they rest there.
void bring_into_cache(const std::vector<FileRange>& ranges);

/// Bytes that this process has moved since it began, from /proc/self/io.
struct DiskUse {
  std::uint64_t read = 0;     // from disks
  std::uint64_t written = 0;  // to disks
};
DiskUse disk_use();

/// How the bare reads and copies are done.
struct BareOptions {
  std::size_t block_bytes = std::size_t{1} << 20;
  int depth = 32;    // reads in flight
  int copiers = 16;  // threads, each reads and writes in turn
};

/// Seconds of reading the ranges with io_uring and O_DIRECT. Throws IoError where the disk refuses
/// either.
double bare_read_seconds(const std::vector<FileRange>& ranges, const BareOptions& options);

/// Seconds of copying the ranges to a new file, O_DIRECT on both sides, space reserved before and
/// fsync at the end. Removes the file, outside the time.
double bare_copy_seconds(const std::vector<FileRange>& ranges, const std::filesystem::path& to,
                         const BareOptions& options);

/// Seconds of reading the ranges out of the page cache with `threads` threads.
double bare_cached_seconds(const std::vector<FileRange>& ranges, int threads);

}  // namespace zi
