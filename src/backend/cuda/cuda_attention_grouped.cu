#include <algorithm>

#include "backend/cuda/cuda_attention_kernels.cuh"
#include "backend/cuda/cuda_attention_mma.cuh"
#include "backend/cuda/cuda_attention_pages.cuh"
#include "backend/cuda/cuda_attention_shares.cuh"
#include "backend/cuda/cuda_attention_tiles.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/weight_stream.cuh"
#include "zero_infer/bytes.h"

/// Attention of single rows whose heads share keys and values: these pass through the chip once for
/// the whole group, so memory sets the time, and tensor cores do the group's products. Keys are
/// divided among warps, and blocks, as in cuda_attention_decode.cu.
///
/// A warp takes a page of K and V at a time. Both are the mma's A: 16 keys by elements of the head,
/// then 16 elements by keys; the group's queries, and then their weights, are its B, 8 heads at a
/// time. The order of a contraction is free, and so is that of the rows of a result. So a lane
/// takes whole pieces of 8 neighbouring elements: of the keys that its rows of A stand for, and of
/// the values that its columns of A stand for. A page is copied in the order of memory, each piece
/// to the place where its lane looks for it in the warp's own ring; neither way has bank conflicts.
namespace zi {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
/// By how much (a factor of 2^4) weights may exceed 1 before their reference is raised, which costs
/// a reduction over the warp.
constexpr float kSlack = 4.0f;

/// Two neighbouring 16-bit elements of two keys as the pairs of each element.
__device__ inline std::uint32_t low_halves(std::uint32_t first, std::uint32_t second) {
  return __byte_perm(first, second, 0x5410);
}
__device__ inline std::uint32_t high_halves(std::uint32_t first, std::uint32_t second) {
  return __byte_perm(first, second, 0x7632);
}

/// The pages of a segment that are this warp's: the warps of a block take them in turn.
template <typename T, int kDim, int kTiles>
__device__ __forceinline__ void attend(const AttentionArgs& a, const Segment& segment,
                                       const uint4* ring, TileRunning<kDim, kTiles>& running) {
  using R = PageRing<kDim>;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int upper = lane / 4;       // row of A, column of B
  const int pair = 2 * (lane % 4);  // first column of C
  const int row = segment.row;
  const int keys = segment.keys;
  const TileHeads tile = heads_of<kTiles>(a, segment.head);
  const int first_head = tile.first;
  const int heads = tile.count;
  const int first_page = segment.first / kKvPageTokens;
  const int pages = (segment.last + kKvPageTokens - 1) / kKvPageTokens - first_page;
  const int count = (pages - warp + warps - 1) / warps;  // of this warp; none if negative or 0
  PageNumbers numbers(a.block_tables + static_cast<std::int64_t>(segment.sequence) * a.max_pages,
                      first_page + warp, warps, count);
  float slopes[kTiles][2];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = n * kTileHeads + pair + r;
      const bool there = a.slopes != nullptr && head < heads;
      slopes[n][r] = there ? a.slopes[first_head + head] * kLog2E : 0.0f;
    }
  }
  // The batch's tables and the slopes, which no kernel writes, are read while earlier kernels may
  // still run.
  wait_for_previous();

  const uint4* const own = ring + (warp * R::kWarpBytes) / 16;
  const std::uint32_t own_address = ptx::shared_address(own);
  const int copied_row = lane / R::kRowLanes;  // and those kRowsAtOnce on
  const int piece = lane % R::kRowLanes;
  const bool in_row = piece * 8 < a.head_dim;
  const int row_bytes = a.head_dim * static_cast<int>(sizeof(T));
  const std::byte* copied =
      a.kv + static_cast<std::size_t>(tile.kv_head * kKvPageTokens + copied_row) * row_bytes +
      piece * 16;
  ptx::make_whole(copied);
  /// Starts the copies of page `i` of this warp to a stage, one group; an empty one after the last.
  /// Slots that hold no key yet may hold NaN, which a weight of zero would not silence, and padding
  /// must add nothing to a score: both become zeros.
  const auto start_copies = [&](int i, int stage) {
    if (i < count) {
      const std::uint64_t page = page_offset(a, numbers.at(i));
      const int there = keys - (first_page + warp + i * warps) * kKvPageTokens;  // keys of it
      const std::uint32_t to = own_address + stage * R::kStageBytes;
      const std::byte* const from = copied + page;
      if (piece < 4 * R::kKeyChunks) {
#pragma unroll
        for (int n = 0; n < R::kCopies; ++n) {
          const int key = n * R::kRowsAtOnce + copied_row;
          ptx::copy_async_16(to + R::key_place(piece / 4, key / 8, key % 8, piece % 4) * 16,
                             from + n * R::kRowsAtOnce * row_bytes, in_row && key < there);
        }
      }
#pragma unroll
      for (int n = 0; n < R::kCopies; ++n) {
        const int key = n * R::kRowsAtOnce + copied_row;
        ptx::copy_async_16(
            to + R::value_place(piece / 8, key / 8 * 2 + key % 2, piece % 8, key % 8 / 2) * 16,
            from + a.page_bytes / 2 + n * R::kRowsAtOnce * row_bytes, in_row && key < there);
      }
    }
    commit_copies();
  };
#pragma unroll
  for (int stage = 0; stage < R::kStages - 1; ++stage) start_copies(stage, stage);

  // Of head `upper` of each tile: of each chunk elements 4 pair .. 4 pair + 7.
  uint4 q[kTiles][R::kKeyChunks];
  {
    const float scale = kLog2E * rsqrtf(static_cast<float>(a.head_dim));
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int head = n * kTileHeads + upper;
      const float* const from =
          a.q + (static_cast<std::int64_t>(row) * a.heads + first_head + head) * a.head_dim;
#pragma unroll
      for (int c = 0; c < R::kKeyChunks; ++c) {
        const int dim = c * 32 + pair * 4;
        const auto two = [&](int i) {
          return query_pair<T>(from, dim + i, a.head_dim, head < heads, scale);
        };
        q[n][c] = make_uint4(two(0), two(2), two(4), two(6));
      }
    }
  }

  auto& sums = running.sums;
  auto& maximum = running.maximum;
  auto& total = running.total;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      maximum[n][r] = -INFINITY;
      total[n][r] = 0.0f;
    }
  }

  int stage = 0;
  int next_stage = R::kStages - 1;
  for (int i = 0; i < count; ++i) {
    wait_for_all_copies_but<R::kStages - 2>();
    __syncwarp();  // all lanes' copies are there, and the stage before is read
    start_copies(i + R::kStages - 1, next_stage);
    const uint4* const pieces = own + stage * (R::kStageBytes / 16);
    next_stage = stage;
    stage = stage + 1 < R::kStages ? stage + 1 : 0;

    // scores[n]: of keys `upper` and upper + 8 by heads `pair` and pair + 1 of tile n.
    float scores[kTiles][4] = {};
    float more[kTiles][4] = {};
#pragma unroll
    for (int c = 0; c < R::kKeyChunks; ++c) {
      const uint4 first = pieces[R::key_place(c, 0, upper, lane % 4)];
      const uint4 second = pieces[R::key_place(c, 1, upper, lane % 4)];
      const std::uint32_t front[4] = {first.x, second.x, first.y, second.y};
      const std::uint32_t back[4] = {first.z, second.z, first.w, second.w};
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        ptx::multiply_add<T>(scores[n], front, q[n][c].x, q[n][c].y);
        ptx::multiply_add<T>(more[n], back, q[n][c].z, q[n][c].w);
      }
    }
    // Relative to the row's own position, which softmax does not see, so that near keys, which
    // weigh most, carry the smallest rounding.
    const int away = (first_page + warp + i * warps) * kKvPageTokens + upper - (keys - 1);
    bool grows = false;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int distance = away + s / 2 * 8;
        const float score =
            fmaf(slopes[n][s % 2], static_cast<float>(distance), scores[n][s] + more[n][s]);
        scores[n][s] = distance <= 0 ? score : -INFINITY;
        grows = grows || scores[n][s] > maximum[n][s % 2] + kSlack;
      }
    }
    if (__any_sync(kAllLanes, grows)) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float best = over_keys(fmaxf(scores[n][r], scores[n][r + 2]),
                                       [](float x, float y) { return fmaxf(x, y); });
          const float reference = fmaxf(maximum[n][r], best);
          const float fade = ptx::exp2(maximum[n][r] - reference_of(reference));
          maximum[n][r] = reference;
          total[n][r] *= fade;
#pragma unroll
          for (int m = 0; m < 4 * R::kValueChunks; ++m) {
            sums[n][m][r] *= fade;
            sums[n][m][r + 2] *= fade;
          }
        }
      }
    }
    // Weights leave the first product with keys in rows, and enter the second in columns.
    std::uint32_t weights[kTiles][2];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float w[4];
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        w[s] = ptx::exp2(scores[n][s] - reference_of(maximum[n][s % 2]));
        total[n][s % 2] += w[s];
      }
      weights[n][0] = ptx::transpose(ptx::pack<T>(w[0], w[1]));
      weights[n][1] = ptx::transpose(ptx::pack<T>(w[2], w[3]));
    }
#pragma unroll
    for (int c = 0; c < R::kValueChunks; ++c) {
      std::uint32_t v[4][4];  // of keys pair, pair + 1, pair + 8 and pair + 9
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint4 values = pieces[R::value_place(c, j, upper, lane % 4)];
        v[j][0] = values.x;
        v[j][1] = values.y;
        v[j][2] = values.z;
        v[j][3] = values.w;
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const std::uint32_t rows[4] = {low_halves(v[0][m], v[1][m]), high_halves(v[0][m], v[1][m]),
                                       low_halves(v[2][m], v[3][m]), high_halves(v[2][m], v[3][m])};
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          ptx::multiply_add<T>(sums[n][4 * c + m], rows, weights[n][0], weights[n][1]);
        }
      }
    }
  }
}

template <typename T, int kDim, int kTiles>
__global__ void __launch_bounds__(32 * PageRing<kDim>::kWarps, 2)
    grouped_kernel(const AttentionArgs a, const Division division, const Partials partials) {
  using R = PageRing<kDim>;
  extern __shared__ __align__(R::kAlignment) uint4 ring[];  // (warps, kStages, kPieces, 32)
  __shared__ TileResults<R::kWarps, kTiles * kTileHeads> results;
  __shared__ WorkShare share;

  let_next_start();
  // To the division, heads are tiles.
  const int tiles =
      a.heads / a.group * ((a.group + kTiles * kTileHeads - 1) / (kTiles * kTileHeads));
  bool there = share.start(a, division, tiles);
  if (!there) wait_for_previous();  // kernels after this one rely on it
  while (there) {
    TileRunning<kDim, kTiles> running;
    attend<T>(a, share.segment(), ring, running);
    __syncthreads();  // all rings are used up
    auto* const sums = reinterpret_cast<float*>(ring);
    leave_tile(running, sums, results);
    __syncthreads();
    finish_tile<kDim, kTiles>(a, share, partials, sums, results);
    there = share.next(a, division, tiles);
  }
}

/// How many warps share a block's keys: each has two pages of the longest sequence at least, and
/// fewer share them where there are more blocks than the device holds at once, `resident` of the
/// most warps.
int choose_warps(const DecodeShape& shape, int most, std::int64_t blocks, std::int64_t resident) {
  int warps = std::clamp(static_cast<int>(context_bound(shape) / (2 * kKvPageTokens)), 1, most);
  while (warps > 1 && blocks * warps > resident * most) warps /= 2;
  return warps;
}

template <typename T, int kDim, int kTiles>
void launch(const AttentionArgs& args, const DecodeShape& shape, const AttentionMemory& memory,
            cudaStream_t stream) {
  using R = PageRing<kDim>;
  const auto kernel = grouped_kernel<T, kDim, kTiles>;
  // Blocks of the most warps that the device holds at once. More shared memory than the 48 KiB that
  // every device grants must be asked for, once.
  static const std::int64_t resident = [&] {
    constexpr int kBytes = R::kWarps * R::kWarpBytes;
    ZI_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    ZI_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared));
    int device = 0, multiprocessors = 0, blocks = 0;
    ZI_CUDA(cudaGetDevice(&device));
    ZI_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    ZI_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, 32 * R::kWarps, kBytes));
    return static_cast<std::int64_t>(multiprocessors) * blocks;
  }();
  const int tiles =
      args.heads / args.group * static_cast<int>(ceil_div(args.group, kTiles * kTileHeads));
  const Shares shares = choose_shares(args, shape, tiles, std::min(args.group, kTiles * kTileHeads),
                                      resident, memory);
  int warps = R::kWarps;
  dim3 grid(shares.blocks);
  Division division{Division::Into::kShares, false, static_cast<int>(resident)};
  if (shares.blocks == 0) {
    const std::int64_t blocks = static_cast<std::int64_t>(std::max(shape.active, 1)) * tiles;
    warps = choose_warps(shape, R::kWarps, blocks, resident);
    grid = {static_cast<unsigned>(shape.queries), static_cast<unsigned>(tiles)};
    division.into = Division::Into::kHeads;
  }
  launch_early(kernel, grid, static_cast<unsigned>(32 * warps),
               static_cast<std::size_t>(warps * R::kWarpBytes), stream, args, division,
               shares.partials);
}

template <typename T, int kDim>
void launch_tiles(const AttentionArgs& args, const DecodeShape& shape,
                  const AttentionMemory& memory, cudaStream_t stream) {
  if (args.group <= kTileHeads) {
    launch<T, kDim, 1>(args, shape, memory, stream);
  } else {
    launch<T, kDim, 2>(args, shape, memory, stream);
  }
}

template <typename T>
void launch_type(const AttentionArgs& args, const DecodeShape& shape, const AttentionMemory& memory,
                 cudaStream_t stream) {
  if (args.head_dim <= 64) {
    launch_tiles<T, 64>(args, shape, memory, stream);
  } else if (args.head_dim <= 96) {
    launch_tiles<T, 96>(args, shape, memory, stream);
  } else if (args.head_dim <= 128) {
    launch_tiles<T, 128>(args, shape, memory, stream);
  } else {
    launch_tiles<T, 256>(args, shape, memory, stream);
  }
}

}  // namespace

void launch_attention_grouped(const AttentionArgs& args, DType kv_dtype, const DecodeShape& shape,
                              const AttentionMemory& memory, cudaStream_t stream) {
  if (kv_dtype == DType::kBFloat16) {
    launch_type<__nv_bfloat16>(args, shape, memory, stream);
  } else {
    launch_type<__half>(args, shape, memory, stream);
  }
}

}  // namespace zi
