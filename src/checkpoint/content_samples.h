#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "safetensors.h"

namespace zi {

/// A tensor of a checkpoint and the open file that holds its bytes. Both outlive it.
struct TensorInFile {
  std::string name;
  const SafetensorsFile* file = nullptr;
  const StoredTensor* tensor = nullptr;
};

/// Bytes of one sample.
inline constexpr std::size_t kSampleBytes = 4096;
/// Samples of a tensor. One that is no longer than all of its samples is read whole.
inline constexpr std::size_t kMostSamples = 32;
inline constexpr std::size_t kFewestSamples = 2;
/// The number of reads of a checkpoint to aim at.
inline constexpr std::size_t kSampleReads = std::size_t{1} << 15;

/// Samples of each tensor, if there are this many tensors: the more tensors, the fewer samples
/// each, within kSampleReads.
std::size_t samples_of_each(std::size_t tensors);

/// Where the samples of a tensor of `bytes` begin, ascending, counted from its first byte: its
/// first bytes, its last bytes, and in each of the equal parts between them a place that only the
/// name and the length decide. Evenly spaced places could all miss the same part of a matrix that
/// repeats, such as the rows of q among those of k and v.
std::vector<std::uint64_t> sample_offsets(const std::string& name, std::uint64_t bytes,
                                          std::size_t samples);

/// A hash of the tensors' names, types, shapes and sampled bytes. It is the same for the same
/// weights wherever the files rest, whatever their names, times and order, however the tensors are
/// spread over files, and for any number of threads.
///
/// Cost: at most kSampleReads reads, or kFewestSamples a tensor where that is more; at most 128 KiB
/// a tensor. BLOOM 176b, 352 GB, has 845 tensors: 281 matrices with 32 samples of 4 KiB each, 564
/// vectors of up to 115 kB whole: 9,556 reads of 63 MB. (A sample lies at any byte of the file, so
/// that storage reads two pages for it: about 100 MB.) The reads go through the page cache, so that
/// the ranks of a host read them once.
///
/// A change that no sample touches is not seen: a few rows of a large matrix. What trains or merges
/// weights changes nearly all values of the matrices that it changes.
///
/// `threads` reads are in flight, fewer where the system does not give that many threads. Throws
/// IoError with path and offset.
std::uint64_t sampled_content(std::vector<TensorInFile> tensors, int threads);

}  // namespace zi
