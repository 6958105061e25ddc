#include <algorithm>
#include <bit>

#include "backend/cuda/cuda_attention_kernels.cuh"
#include "backend/cuda/cuda_attention_mma.cuh"
#include "backend/cuda/cuda_attention_pages.cuh"
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
constexpr int kHeads = 8;  // of a tile: the columns of an mma
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

/// Over the eight lanes that hold the same heads.
template <typename Combine>
__device__ inline float over_keys(float x, const Combine& combine) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) {
    x = combine(x, __shfl_xor_sync(kAllLanes, x, lanes));
  }
  return x;
}

/// Grid: (sequences, heads of K and V times tiles of 8 kTiles of their queries' heads, splits).
template <typename T, int kDim, int kTiles>
__global__ void __launch_bounds__(32 * PageRing<kDim>::kWarps)
    grouped_kernel(const AttentionArgs a, const Partials partials) {
  using R = PageRing<kDim>;
  extern __shared__ uint4 ring[];  // (warps, kStages, kPieces, 32)
  __shared__ float shared_maximum[R::kWarps][kTiles * kHeads];
  __shared__ float shared_total[R::kWarps][kTiles * kHeads];

  let_next_start();
  const int sequence = static_cast<int>(blockIdx.x);
  const int row_tiles = (a.group + kTiles * kHeads - 1) / (kTiles * kHeads);
  const int kv_head = static_cast<int>(blockIdx.y) / row_tiles;
  const int first_of_group = static_cast<int>(blockIdx.y) % row_tiles * kTiles * kHeads;
  const int heads = min(a.group - first_of_group, kTiles * kHeads);  // that are there
  const int first_head = kv_head * a.group + first_of_group;
  const int split = static_cast<int>(blockIdx.z);
  const int splits = static_cast<int>(gridDim.z);
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int upper = lane / 4;       // row of A, column of B
  const int pair = 2 * (lane % 4);  // first column of C

  // The batch's tables and the slopes, which no kernel writes, are read while earlier kernels may
  // still run.
  const int row = a.row_begin[sequence];
  const int end = a.row_begin[sequence + 1];
  const int keys = a.context[sequence];
  if (end - row != 1) {
    wait_for_previous();  // kernels after this one rely on it
    return;
  }
  const std::int64_t slot =
      (static_cast<std::int64_t>(sequence) * a.heads + first_head) * splits + split;
  const int all_pages = (keys + kKvPageTokens - 1) / kKvPageTokens;
  const int split_pages = (all_pages + splits - 1) / splits;
  const int first_page = split * split_pages;
  const int pages = min(all_pages - first_page, split_pages);
  if (pages <= 0) {
    wait_for_previous();
    if (static_cast<int>(threadIdx.x) < heads) {
      partials.totals[slot + threadIdx.x * splits] = make_float2(-INFINITY, 0.0f);
    }
    return;
  }
  const int count = (pages - warp + warps - 1) / warps;  // of this warp; none if negative or 0
  PageNumbers numbers(a.block_tables + static_cast<std::int64_t>(sequence) * a.max_pages,
                      first_page + warp, warps, count);
  float slopes[kTiles][2];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = n * kHeads + pair + r;
      const bool there = a.slopes != nullptr && head < heads;
      slopes[n][r] = there ? a.slopes[first_head + head] * kLog2E : 0.0f;
    }
  }
  wait_for_previous();

  const uint4* const own = ring + (warp * R::kWarpBytes) / 16;
  const std::uint32_t own_address = ptx::shared_address(own);
  const int copied_row = lane / R::kRowLanes;  // and those kRowsAtOnce on
  const int piece = lane % R::kRowLanes;
  const bool in_row = piece * 8 < a.head_dim;
  const int row_bytes = a.head_dim * static_cast<int>(sizeof(T));
  const std::byte* copied =
      a.kv + static_cast<std::size_t>(kv_head * kKvPageTokens + copied_row) * row_bytes +
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
      const int head = n * kHeads + upper;
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

  float sums[kTiles][4 * R::kValueChunks][4] = {};
  float maximum[kTiles][2];
  float total[kTiles][2];  // of this lane's keys
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

  __syncthreads();                                           // all rings are used up
  auto* const shared_sums = reinterpret_cast<float*>(ring);  // (warps, 8 kTiles, kSumStride)
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = n * kHeads + pair + r;
      const float all = over_keys(total[n][r], [](float x, float y) { return x + y; });
      if (upper == 0) {
        shared_maximum[warp][head] = maximum[n][r];
        shared_total[warp][head] = all;
      }
      float* const to = shared_sums + (warp * kTiles * kHeads + head) * R::kSumStride;
#pragma unroll
      for (int m = 0; m < 4 * R::kValueChunks; ++m) {
        *reinterpret_cast<float2*>(to + m / 4 * 64 + upper * 8 + m % 4 * 2) =
            make_float2(sums[n][m][r], sums[n][m][r + 2]);
      }
    }
  }
  __syncthreads();
  for (int head = warp; head < heads; head += warps) {
    float best = shared_maximum[0][head];  // warp 0 has a key
    for (int w = 1; w < warps; ++w) best = fmaxf(best, shared_maximum[w][head]);
    float fades[R::kWarps];
    float all = 0.0f;
#pragma unroll
    for (int w = 0; w < R::kWarps; ++w) {
      fades[w] = w < warps ? ptx::exp2(shared_maximum[w][head] - reference_of(best)) : 0.0f;
      if (w < warps) all += fades[w] * shared_total[w][head];
    }
    const std::int64_t column =
        (static_cast<std::int64_t>(row) * a.heads + first_head + head) * a.head_dim;
    const std::int64_t part = slot + static_cast<std::int64_t>(head) * splits;
    for (int dim = lane; dim < a.head_dim; dim += 32) {
      float result = 0.0f;
#pragma unroll
      for (int w = 0; w < R::kWarps; ++w) {
        if (w < warps) {
          result += fades[w] * shared_sums[(w * kTiles * kHeads + head) * R::kSumStride + dim];
        }
      }
      if (splits == 1) {
        store_as(a.out, a.out_dtype, column + dim, result / all);
      } else {
        partials.sums[part * a.head_dim + dim] = result;
      }
    }
    if (splits > 1 && lane == 0) partials.totals[part] = make_float2(best, all);
  }
}

/// How many warps share a block's keys: each has two pages of the longest sequence at least, and
/// fewer share them where there are more blocks than the device holds at once, `resident` of the
/// most warps.
int choose_warps(const DecodeShape& shape, int most, std::int64_t blocks, std::int64_t resident) {
  const auto keys = std::bit_ceil(static_cast<std::uint32_t>(std::max(shape.longest, 1)));
  int warps = std::clamp(static_cast<int>(keys / (2 * kKvPageTokens)), 1, most);
  while (warps > 1 && blocks * warps > resident * most) warps /= 2;
  return warps;
}

template <typename T, int kDim, int kTiles>
void launch(const AttentionArgs& args, const DecodeShape& shape, std::span<std::byte> scratch,
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
  const int row_tiles = static_cast<int>(ceil_div(args.group, kTiles * kHeads));
  const int heads = args.heads / args.group * row_tiles;
  const std::int64_t blocks = static_cast<std::int64_t>(std::max(shape.active, 1)) * heads;
  const int warps = choose_warps(shape, R::kWarps, blocks, resident);
  const SplitChoice choice{.blocks = blocks,
                           .resident = resident * R::kWarps / warps,
                           .rounds = 4,  // a short last one
                           .fewest_keys = 4 * kKvPageTokens * warps};
  const int splits = choose_splits(args, shape, choice, scratch);
  const Partials partials = partials_in(scratch, args, shape, splits);
  const dim3 grid(static_cast<unsigned>(shape.queries), static_cast<unsigned>(heads),
                  static_cast<unsigned>(splits));
  launch_early(kernel, grid, static_cast<unsigned>(32 * warps),
               static_cast<std::size_t>(warps * R::kWarpBytes), stream, args, partials);
  if (splits > 1) launch_attention_combine(args, shape, splits, partials, stream);
}

template <typename T, int kDim>
void launch_tiles(const AttentionArgs& args, const DecodeShape& shape, std::span<std::byte> scratch,
                  cudaStream_t stream) {
  if (args.group <= kHeads) {
    launch<T, kDim, 1>(args, shape, scratch, stream);
  } else {
    launch<T, kDim, 2>(args, shape, scratch, stream);
  }
}

template <typename T>
void launch_type(const AttentionArgs& args, const DecodeShape& shape, std::span<std::byte> scratch,
                 cudaStream_t stream) {
  if (args.head_dim <= 64) {
    launch_tiles<T, 64>(args, shape, scratch, stream);
  } else if (args.head_dim <= 96) {
    launch_tiles<T, 96>(args, shape, scratch, stream);
  } else if (args.head_dim <= 128) {
    launch_tiles<T, 128>(args, shape, scratch, stream);
  } else {
    launch_tiles<T, 256>(args, shape, scratch, stream);
  }
}

}  // namespace

void launch_attention_grouped(const AttentionArgs& args, DType kv_dtype, const DecodeShape& shape,
                              std::span<std::byte> scratch, cudaStream_t stream) {
  if (kv_dtype == DType::kBFloat16) {
    launch_type<__nv_bfloat16>(args, shape, scratch, stream);
  } else {
    launch_type<__half>(args, shape, scratch, stream);
  }
}

}  // namespace zi
