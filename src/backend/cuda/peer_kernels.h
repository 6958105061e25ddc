#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "zero_infer/dtype.h"

namespace zi {

/// Ranks that can be each other's peers at most: those of one host.
inline constexpr int kMostPeers = 16;

/// Before each rank's shared memory lies what the kernels count in, zeros at first. A multiple of
/// 256.
inline constexpr std::size_t kPeerHeaderBytes = std::size_t{32} << 10;

/// What a kernel must know to store into the memory of every rank.
struct PeerTable {
  std::byte* base[kMostPeers];  // of each rank's header, as this GPU reaches it
  int world;
  int rank;
  /// In pinned host memory: once it is not 0, kernels no longer wait, and what they leave is
  /// undefined.
  const int* stop;
};

/// PeerExchange::gather_inputs and return_results. Offsets count from the end of the header.
void cuda_gather_inputs(const PeerTable& peers, const void* inputs, std::size_t bytes,
                        std::size_t offset, cudaStream_t stream);
void cuda_return_results(const PeerTable& peers, const void* parts, DType type, std::int64_t rows,
                         std::span<const std::int64_t> slices, std::size_t offset, void* results,
                         cudaStream_t stream);

}  // namespace zi
