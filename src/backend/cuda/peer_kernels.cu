#include <algorithm>
#include <limits>

#include "backend/cuda/column_slices.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/peer_kernels.h"
#include "zero_infer/error.h"

/// Each block stores its part of what a rank sends into the memory of all ranks, tells the blocks
/// of the same number on the other ranks so, and waits for what they tell. A block waits for no
/// other block of its own rank, so that they need not all be on the GPU at once. When the kernel is
/// at its end, all parts of all ranks are there.
///
/// What a block tells is how often it has done so. It counts in device memory: a launch that was
/// recorded goes on counting each time that it is replayed. Ranks agree on it because the number of
/// blocks follows from sizes that are the same on all.
namespace zi {
namespace {

constexpr int kThreads = 512;
/// A kernel that moves little is a wait for other GPUs more than a copy: blocks share it as soon as
/// each of their threads has a word, up to some of them. A larger one needs as many as there are
/// multiprocessors for the rate of the link.
constexpr std::size_t kBlockBytes = kThreads * sizeof(uint4);
constexpr std::size_t kFewBlocks = 32;
constexpr std::size_t kMostBlocks = 128;
/// Turns of waiting between two looks at host memory.
constexpr unsigned kStopTurns = 4096;

enum Step { kInputs, kResults };

struct Header {
  /// How often the block of that number on each rank has stored its part. Other GPUs write it.
  unsigned told[2][kMostBlocks][kMostPeers];
  /// How often the own block has.
  unsigned count[2][kMostBlocks];
};
static_assert(sizeof(Header) <= kPeerHeaderBytes);

/// What the thread stored before, and other threads of its block before a barrier, comes first. (A
/// fence of its own ahead of it would take as long again.)
__device__ inline void tell(unsigned* at, unsigned count) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(count) : "memory");
}

__device__ inline unsigned told(const unsigned* at) {
  unsigned count;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(count) : "l"(at) : "memory");
  return count;
}

__device__ inline Header* header_of(const PeerTable& peers, int rank) {
  return reinterpret_cast<Header*>(peers.base[rank]);
}

/// What the block tells when it next meets: to be read ahead of what it stores, as the read takes
/// its time. After wait_for_previous.
__device__ inline unsigned next_count(const PeerTable& peers, Step step) {
  return header_of(peers, peers.rank)->count[step][blockIdx.x] + 1;
}

/// Called by all threads of a block when they have stored their parts; returns when those of the
/// blocks of this number on all ranks are here.
__device__ inline void meet(const PeerTable& peers, Step step, unsigned count) {
  Header* const own = header_of(peers, peers.rank);
  const unsigned block = blockIdx.x;
  __syncthreads();
  const int peer = static_cast<int>(threadIdx.x);
  if (peer < peers.world && peer != peers.rank) {
    tell(&header_of(peers, peer)->told[step][block][peers.rank], count);
    const unsigned* const at = &own->told[step][block][peer];
    // Counts wrap around.
    for (unsigned turn = 1; static_cast<int>(told(at) - count) < 0; ++turn) {
      if (turn % kStopTurns == 0 && *static_cast<const volatile int*>(peers.stop) != 0) break;
    }
  }
  if (peer == 0) own->count[step][block] = count;
  __syncthreads();
}

/// The words of a block, of `count`.
struct Part {
  unsigned begin;
  unsigned end;
};

/// Cut by bytes: which words a rank can use depends on its own addresses, too, and a block must
/// have the same bytes on all ranks.
template <typename Word>
__device__ inline Part part_of(unsigned count) {
  constexpr unsigned kWords = sizeof(uint4) / sizeof(Word);
  const unsigned pieces = (count + kWords - 1) / kWords;
  const unsigned each = (pieces + gridDim.x - 1) / gridDim.x * kWords;
  const unsigned begin = min(blockIdx.x * each, count);
  return {begin, min(begin + each, count)};
}

template <typename Word>
__device__ inline Word* shared_at(const PeerTable& peers, int rank, std::size_t offset) {
  return reinterpret_cast<Word*>(peers.base[rank] + kPeerHeaderBytes + offset);
}

/// `count` words of each rank.
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const PeerTable peers, const Word* inputs, unsigned count, std::size_t offset) {
  wait_for_previous();
  const unsigned meeting = next_count(peers, kInputs);
  const Part part = part_of<Word>(count);
  const std::size_t first = static_cast<std::size_t>(peers.rank) * count;
  for (unsigned i = part.begin + threadIdx.x; i < part.end; i += kThreads) {
    const Word word = inputs[i];
    for (int peer = 0; peer < peers.world; ++peer) {
      shared_at<Word>(peers, peer, offset)[first + i] = word;
    }
  }
  meet(peers, kInputs, meeting);
}

/// Columns in words.
using Slices = ColumnSlices<unsigned>;

/// Where word i of (rows, sum of slices) of a rank stands in (rows, world * sum).
__device__ inline std::size_t interleaved(unsigned i, const Slices& slices, int rank, int world) {
  const unsigned row = i / slices.sum;
  return interleaved_column<std::size_t>(slices, row, i - row * slices.sum, rank, world);
}

/// `count` words for each rank.
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    return_kernel(const PeerTable peers, const Word* parts, unsigned count, const Slices slices,
                  std::size_t offset, Word* results) {
  wait_for_previous();
  const unsigned meeting = next_count(peers, kResults);
  const Part part = part_of<Word>(count);
  const int world = peers.world;
  const int rank = peers.rank;
  // The next rank first: else all ranks would store into the same one at a time.
  for (int step = 1; step < world; ++step) {
    const int peer = rank + step < world ? rank + step : rank + step - world;
    const Word* const from = parts + static_cast<std::size_t>(peer) * count;
    Word* const to = shared_at<Word>(peers, peer, offset) + static_cast<std::size_t>(rank) * count;
    for (unsigned i = part.begin + threadIdx.x; i < part.end; i += kThreads) to[i] = from[i];
  }
  const Word* const own = parts + static_cast<std::size_t>(rank) * count;
  for (unsigned i = part.begin + threadIdx.x; i < part.end; i += kThreads) {
    results[interleaved(i, slices, rank, world)] = own[i];
  }
  meet(peers, kResults, meeting);
  for (int peer = 0; peer < world; ++peer) {
    if (peer == rank) continue;
    const Word* const from =
        shared_at<Word>(peers, rank, offset) + static_cast<std::size_t>(peer) * count;
    for (unsigned i = part.begin + threadIdx.x; i < part.end; i += kThreads) {
      results[interleaved(i, slices, peer, world)] = __ldcg(from + i);  // not from this SM's cache
    }
  }
}

/// Calls run(word) with the widest word in which all of these sizes and addresses are whole.
template <typename Run>
void with_word(std::size_t sizes, const Run& run) {
  if (sizes % sizeof(uint4) == 0) {
    run(uint4{});
  } else if (sizes % sizeof(unsigned) == 0) {
    run(0u);
  } else if (sizes % sizeof(unsigned short) == 0) {
    run(static_cast<unsigned short>(0));
  } else {
    throw Error("what peers exchange has an odd size or address");
  }
}

std::size_t address(const void* data) { return reinterpret_cast<std::size_t>(data); }

unsigned words(std::size_t bytes, std::size_t word) {
  const std::size_t count = bytes / word;
  if (count > std::numeric_limits<int>::max()) throw Error("peers exchange too much at once");
  return static_cast<unsigned>(count);
}

/// For so many bytes from each rank to each.
unsigned blocks_for(std::size_t bytes) {
  const auto blocks_of = [&](std::size_t each) { return (bytes + each - 1) / each; };
  const std::size_t few = std::min(blocks_of(kBlockBytes), kFewBlocks);
  return static_cast<unsigned>(std::clamp(blocks_of(2 * kBlockBytes), few, kMostBlocks));
}

}  // namespace

void cuda_gather_inputs(const PeerTable& peers, const void* inputs, std::size_t bytes,
                        std::size_t offset, cudaStream_t stream) {
  with_word(bytes | offset | address(inputs), [&]<typename Word>(Word) {
    launch_early(gather_kernel<Word>, blocks_for(bytes), kThreads, 0, stream, peers,
                 static_cast<const Word*>(inputs), words(bytes, sizeof(Word)), offset);
  });
}

void cuda_return_results(const PeerTable& peers, const void* parts, DType type, std::int64_t rows,
                         std::span<const std::int64_t> slices, std::size_t offset, void* results,
                         cudaStream_t stream) {
  std::size_t row = 0;  // bytes
  std::size_t sizes = offset | address(parts) | address(results);
  for (const std::int64_t slice : slices) {
    const std::size_t bytes = static_cast<std::size_t>(slice) * size_of(type);
    row += bytes;
    sizes |= bytes;
  }
  const std::size_t bytes = static_cast<std::size_t>(rows) * row;
  with_word(sizes, [&]<typename Word>(Word) {
    Slices in_words{};
    for (std::size_t i = 0; i < slices.size(); ++i) {
      in_words.width[i] = words(static_cast<std::size_t>(slices[i]) * size_of(type), sizeof(Word));
    }
    in_words.sum = words(row, sizeof(Word));
    launch_early(return_kernel<Word>, blocks_for(bytes), kThreads, 0, stream, peers,
                 static_cast<const Word*>(parts), words(bytes, sizeof(Word)), in_words, offset,
                 static_cast<Word*>(results));
  });
}

}  // namespace zi
