#include "window_kernels.h"

#if ZI_NCCL_HAS_DEVICE_API
#include <algorithm>
#include <limits>

#include "backend/cuda/cuda_support.h"
#include "backend/cuda/launch.cuh"
#include "zero_infer/error.h"

/// As the project's own kernels (backend/cuda/peer_kernels.cu) they start early, and cut what they
/// move into the same blocks, so that only the barriers and the way to a peer's memory differ. A
/// block meets the blocks of the same number on the other ranks, and waits for no other.
namespace zi {
namespace {

constexpr int kThreads = 512;
constexpr std::size_t kBlockBytes = kThreads * sizeof(uint4);
constexpr std::size_t kFewBlocks = 32;

using Barrier = ncclLsaBarrierSession<ncclCoopCta>;

/// Peers may be stored into: they have read what came before. What they have read before they came
/// here cannot be seen to change, so that nothing needs to be released (as in NCCL's kernels).
__device__ inline void meet_before(const WindowTeam& team, Barrier& barrier) {
  if (team.meet_before) barrier.sync(ncclCoopCta(), cuda::memory_order_relaxed);
}

/// What all ranks have stored is here.
__device__ inline void meet_after(Barrier& barrier) {
  barrier.sync(ncclCoopCta(), cuda::memory_order_acq_rel);
}

struct Part {
  unsigned begin;
  unsigned end;
};

/// The words of a block, of `count`.
__device__ inline Part part_of(unsigned count) {
  const unsigned each = (count + gridDim.x - 1) / gridDim.x;
  const unsigned begin = min(blockIdx.x * each, count);
  return {begin, min(begin + each, count)};
}

__device__ inline uint4* shared_at(const WindowTeam& team, int rank, std::size_t offset) {
  return static_cast<uint4*>(ncclGetLsaPointer(team.window, offset, rank));
}

/// `count` words of each rank.
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const __grid_constant__ WindowTeam team, const uint4* inputs, unsigned count,
                  std::size_t offset) {
  wait_for_previous();
  Barrier barrier(ncclCoopCta(), team.comm, ncclTeamTagLsa(), blockIdx.x);
  meet_before(team, barrier);
  const Part part = part_of(count);
  const std::size_t first = static_cast<std::size_t>(team.comm.rank) * count;
  for (unsigned i = part.begin + threadIdx.x; i < part.end; i += kThreads) {
    const uint4 word = inputs[i];
    for (int peer = 0; peer < team.comm.nRanks; ++peer) {
      shared_at(team, peer, offset)[first + i] = word;
    }
  }
  meet_after(barrier);
}

/// `count` words for each rank, in rows of `width`.
__global__ void __launch_bounds__(kThreads)
    return_kernel(const __grid_constant__ WindowTeam team, const uint4* parts, unsigned count,
                  unsigned width, std::size_t offset, uint4* results) {
  wait_for_previous();
  Barrier barrier(ncclCoopCta(), team.comm, ncclTeamTagLsa(), blockIdx.x);
  meet_before(team, barrier);
  const Part part = part_of(count);
  const int world = team.comm.nRanks;
  const int rank = team.comm.rank;
  // Where word i of (rows, width) of a rank stands in (rows, world * width).
  const auto interleaved = [&](unsigned i, int of) {
    const unsigned row = i / width;
    return (static_cast<std::size_t>(row) * world + of) * width + (i - row * width);
  };
  // The next rank first: else all ranks would store into the same one at a time.
  for (int step = 1; step < world; ++step) {
    const int peer = rank + step < world ? rank + step : rank + step - world;
    const uint4* const from = parts + static_cast<std::size_t>(peer) * count;
    uint4* const to = shared_at(team, peer, offset) + static_cast<std::size_t>(rank) * count;
    for (unsigned i = part.begin + threadIdx.x; i < part.end; i += kThreads) to[i] = from[i];
  }
  const uint4* const own = parts + static_cast<std::size_t>(rank) * count;
  for (unsigned i = part.begin + threadIdx.x; i < part.end; i += kThreads) {
    results[interleaved(i, rank)] = own[i];
  }
  meet_after(barrier);
  for (int peer = 0; peer < world; ++peer) {
    if (peer == rank) continue;
    const uint4* const from =
        shared_at(team, rank, offset) + static_cast<std::size_t>(peer) * count;
    for (unsigned i = part.begin + threadIdx.x; i < part.end; i += kThreads) {
      results[interleaved(i, peer)] = __ldcg(from + i);  // not from this SM's cache
    }
  }
}

unsigned words(std::size_t bytes) {
  const std::size_t count = bytes / sizeof(uint4);
  if (count > std::numeric_limits<int>::max()) throw Error("peers exchange too much at once");
  return static_cast<unsigned>(count);
}

void check_words(std::size_t sizes) {
  if (sizes % sizeof(uint4) == 0) return;
  throw Error("what is exchanged by NCCL's device API must be multiples of 16 bytes");
}

std::size_t address(const void* data) { return reinterpret_cast<std::size_t>(data); }

/// For so many bytes from each rank to each.
unsigned blocks_for(std::size_t bytes) {
  const auto blocks_of = [&](std::size_t each) { return (bytes + each - 1) / each; };
  const std::size_t few = std::min(blocks_of(kBlockBytes), kFewBlocks);
  constexpr std::size_t kMost = kWindowBarriers;
  return static_cast<unsigned>(std::clamp(blocks_of(2 * kBlockBytes), few, kMost));
}

}  // namespace

int window_kernels_version() { return NCCL_VERSION_CODE; }

void window_gather_inputs(const WindowTeam& team, const void* inputs, std::size_t bytes,
                          std::size_t offset, cudaStream_t stream) {
  check_words(bytes | offset | address(inputs));
  launch_early(gather_kernel, blocks_for(bytes), kThreads, 0, stream, team,
               static_cast<const uint4*>(inputs), words(bytes), offset);
}

void window_return_results(const WindowTeam& team, const void* parts, std::size_t bytes,
                           std::size_t row_bytes, std::size_t offset, void* results,
                           cudaStream_t stream) {
  check_words(bytes | row_bytes | offset | address(parts) | address(results));
  launch_early(return_kernel, blocks_for(bytes), kThreads, 0, stream, team,
               static_cast<const uint4*>(parts), words(bytes), words(row_bytes), offset,
               static_cast<uint4*>(results));
}

}  // namespace zi
#endif
