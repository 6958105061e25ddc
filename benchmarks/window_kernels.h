#pragma once

#include <nccl.h>

/// NCCL's device API: since 2.28, in headers of its own.
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0) && __has_include(<nccl_device.h>)
#define ZI_NCCL_HAS_DEVICE_API 1
#else
#define ZI_NCCL_HAS_DEVICE_API 0
#endif

#if ZI_NCCL_HAS_DEVICE_API
#include <cuda_runtime.h>
#include <nccl_device.h>

#include <cstddef>

namespace zi {

/// The barriers that the kernels use: one for each block.
inline constexpr int kWindowBarriers = 128;

/// What kernels must know to store into the memory of every rank.
struct WindowTeam {
  ncclDevComm comm;  // all ranks are in its LSA team, and it has kWindowBarriers
  ncclWindow_t window;
  bool meet_before;  // ranks meet before an exchange, too
};

/// The NCCL whose headers the kernels were compiled with: nvcc looks for them in its toolkit, too.
int window_kernels_version();

/// PeerExchange::gather_inputs, and return_results of one matrix of which a rank has `row_bytes` of
/// each row. `bytes` go from each rank to each; all sizes and addresses are multiples of 16.
void window_gather_inputs(const WindowTeam& team, const void* inputs, std::size_t bytes,
                          std::size_t offset, cudaStream_t stream);
void window_return_results(const WindowTeam& team, const void* parts, std::size_t bytes,
                           std::size_t row_bytes, std::size_t offset, void* results,
                           cudaStream_t stream);

}  // namespace zi
#endif
