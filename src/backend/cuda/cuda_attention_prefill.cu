#include "backend/cuda/cuda_attention_kernels.cuh"
#include "backend/cuda/cuda_attention_mma.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/prompt_tile.cuh"

/// Attention of sequences with several rows: FlashAttention-2 (Dao 2023). A block takes 64 rows of
/// one head and meets the keys 64 at a time; scores and weights stay in registers, where what the
/// first product leaves is laid out as the second needs it. Each step's keys and values are
/// gathered from their pages while the step before is computed.
namespace zi {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;  // of a tile: a warp's products have 16

/// Shared memory holds two steps of K, then V: (2, 2, keys, kStride). Rows are 16 bytes longer than
/// head_dim, so that eight of them at the same column, which ldmatrix reads together, lie in
/// different banks.
template <int kDim, int kKeys>
struct Tiles {
  static constexpr int kStride = kDim + 8;
  static constexpr int kMatrixBytes = 2 * kKeys * kStride;
  static constexpr int kStageBytes = 2 * kMatrixBytes;
  static constexpr int kBytes = 2 * kStageBytes;
};

/// kDim: head_dim rounded up to a size that there is a kernel for; kKeys: keys of a step.
/// Grid: (heads, tokens / kRows + sequences), tiles as PromptTile says.
template <typename T, int kDim, int kKeys>
__global__ void __launch_bounds__(kThreads, kDim <= 128 ? 3 : 1)
    prefill_kernel(const AttentionArgs a) {
  using Shape = Tiles<kDim, kKeys>;
  constexpr int kChunks = kDim / 8;                 // of 16 bytes in a row
  constexpr int kLanes = kThreads / kKvPageTokens;  // that copy a row together
  constexpr int kPages = kKeys / kKvPageTokens;
  static_assert(kDim % 16 == 0 && kKeys % 16 == 0 && kThreads % kKvPageTokens == 0);
  extern __shared__ uint4 shared_tiles[];
  __shared__ std::int32_t shared_pages[2][kPages];

  const auto thread = static_cast<int>(threadIdx.x);
  const auto head = static_cast<int>(blockIdx.x);
  // The last tiles of a prompt meet most keys: they go first.
  const auto tile = static_cast<int>(gridDim.y - 1 - blockIdx.y);
  const PromptTile of = PromptTile::find<kThreads>(a, tile, kRows);
  if (of.tokens == 0) return;

  const int warp = thread / 32;
  const int lane = thread % 32;
  const int pair = 2 * (lane % 4);         // the first of this lane's columns
  const int upper = warp * 16 + lane / 4;  // its rows in the tile
  const int lower = upper + 8;
  const std::int64_t hidden = static_cast<std::int64_t>(a.heads) * a.head_dim;
  const std::int64_t column = static_cast<std::int64_t>(of.first) * hidden + head * a.head_dim;

  std::uint32_t q[kDim / 16][4];
  {
    const float scale = kLog2E * rsqrtf(static_cast<float>(a.head_dim));
    const float* const upper_q = a.q + column + upper * hidden;
    const float* const lower_q = a.q + column + lower * hidden;
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      const int c = i * 16 + pair;
      q[i][0] = query_pair<T>(upper_q, c, a.head_dim, upper < of.tokens, scale);
      q[i][1] = query_pair<T>(lower_q, c, a.head_dim, lower < of.tokens, scale);
      q[i][2] = query_pair<T>(upper_q, c + 8, a.head_dim, upper < of.tokens, scale);
      q[i][3] = query_pair<T>(lower_q, c + 8, a.head_dim, lower < of.tokens, scale);
    }
  }
  const float slope = a.slopes == nullptr ? 0.0f : a.slopes[head] * kLog2E;

  const std::int32_t* const table =
      a.block_tables + static_cast<std::int64_t>(of.sequence) * a.max_pages;
  /// Starts to look up the pages of a step; pages without keys become page 0, which is not read.
  const auto start_lookups = [&](int step) {
    if (thread >= kPages) return;
    const int page = step * kPages + thread;
    const bool there = page * kKvPageTokens < of.keys;
    ptx::copy_async_4(ptx::shared_address(&shared_pages[step % 2][thread]),
                      table + (there ? page : 0), there);
  };
  // Of each page, kLanes threads copy a slot, 16 bytes each at a time.
  const int slot = thread / kLanes;
  const int place = thread % kLanes;
  const std::byte* own = a.kv +
                         (static_cast<std::size_t>(head / a.group) * kKvPageTokens + slot) *
                             static_cast<std::size_t>(a.head_dim) * sizeof(T) +
                         place * 16;
  ptx::make_whole(own);
  const std::uint32_t tiles = ptx::shared_address(shared_tiles);
  const std::uint32_t own_tile = tiles + (slot * Shape::kStride + place * 8) * sizeof(T);
  /// Starts the copies of a step. Slots that hold no key yet may hold NaN, which a weight of zero
  /// would not silence, and padding must add nothing to a score: both become zeros.
  const auto start_copies = [&](int step) {
    std::uint32_t to = own_tile + (step % 2) * Shape::kStageBytes;
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const std::byte* from = own + page_offset(a, shared_pages[step % 2][i]);
      const bool has_key = step * kKeys + i * kKvPageTokens + slot < of.keys;
#pragma unroll
      for (int c = 0; c < kChunks; c += kLanes) {
        if (c + kLanes > kChunks && c + place >= kChunks) continue;
        const bool there = has_key && (c + place) * 8 < a.head_dim;
        ptx::copy_async_16(to + c * 16, from + c * 16, there);
        ptx::copy_async_16(to + c * 16 + Shape::kMatrixBytes, from + c * 16 + a.page_bytes / 2,
                           there);
      }
      to += kKvPageTokens * Shape::kStride * static_cast<int>(sizeof(T));
    }
  };

  // Where this lane's rows of four 8x8 matrices start: of K keys 0-7 at columns 0-7 and 8-15, then
  // keys 8-15; of V, transposed, keys 0-7 and 8-15 at columns 0-7, then at columns 8-15. So two
  // neighbouring registers hold an operand.
  const std::uint32_t k_lane =
      (((lane / 16) * 8 + lane % 8) * Shape::kStride + (lane / 8 % 2) * 8) * sizeof(T);
  const std::uint32_t v_lane =
      (lane % 16 * Shape::kStride + (lane / 16) * 8) * sizeof(T) + Shape::kMatrixBytes;

  float out[kDim / 8][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0f, 0.0f};  // of this lane's columns
  const bool has_rows = warp * 16 < of.tokens;
  // Of this warp's first row; a warp without rows meets no keys.
  const int warp_position = has_rows ? of.position + warp * 16 : -kRows;
  // This lane's keys of a step are 8n + pair and the next: first_key + 8n - reach from the position
  // of its upper row, to which ALiBi is relative here: softmax does not see that, and near keys,
  // which weigh most, carry the smallest rounding.
  const int reach = of.position + upper - pair;

  // Copies run one step ahead, lookups two.
  start_lookups(0);
  start_lookups(1);
  ptx::wait_for_copies();
  __syncthreads();
  start_copies(0);
  for (int step = 0; step * kKeys < of.keys; ++step) {
    ptx::wait_for_copies();
    // After this, the step's keys are in shared memory, and no warp reads the other stage or this
    // step's page numbers any more.
    __syncthreads();
    if ((step + 1) * kKeys < of.keys) {
      start_copies(step + 1);
      start_lookups(step + 2);
    }
    const int first_key = step * kKeys;
    if (first_key <= warp_position + 15) {
      const std::uint32_t stage = tiles + (step % 2) * Shape::kStageBytes;
      float weights[kKeys / 8][4] = {};
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
        for (int n = 0; n < kKeys / 16; ++n) {
          std::uint32_t k[4];
          ptx::load_matrices(
              k, stage + k_lane + (n * 16 * Shape::kStride + i * 16) * static_cast<int>(sizeof(T)));
          ptx::multiply_add<T>(weights[2 * n], q[i], k[0], k[1]);
          ptx::multiply_add<T>(weights[2 * n + 1], q[i], k[2], k[3]);
        }
      }
      const float bias = slope * static_cast<float>(first_key - reach);
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        const float even = fmaf(slope, static_cast<float>(8 * n), bias);
        const float odd = fmaf(slope, static_cast<float>(8 * n + 1), bias);
        weights[n][0] += even;
        weights[n][1] += odd;
        weights[n][2] += even;
        weights[n][3] += odd;
      }
      if (first_key + kKeys - 1 > warp_position) {  // some row does not see some key
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
          const int key = first_key + 8 * n;
          if (key > reach) weights[n][0] = -INFINITY;
          if (key + 1 > reach) weights[n][1] = -INFINITY;
          if (key > reach + 8) weights[n][2] = -INFINITY;
          if (key + 1 > reach + 8) weights[n][3] = -INFINITY;
        }
      }
      // All rows see key 0: from the first step on, maxima are finite.
      float best[2] = {maximum[0], maximum[1]};
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        best[0] = fmaxf(best[0], fmaxf(weights[n][0], weights[n][1]));
        best[1] = fmaxf(best[1], fmaxf(weights[n][2], weights[n][3]));
      }
      float fade[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        best[r] = quad_maximum(best[r]);
        fade[r] = ptx::exp2(maximum[r] - best[r]);
        maximum[r] = best[r];
        total[r] *= fade[r];
      }
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          weights[n][i] = ptx::exp2(weights[n][i] - best[i / 2]);
          total[i / 2] += weights[n][i];
        }
      }
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[d][i] *= fade[i / 2];
      }
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        const std::uint32_t p[4] = {ptx::pack<T>(weights[2 * n][0], weights[2 * n][1]),
                                    ptx::pack<T>(weights[2 * n][2], weights[2 * n][3]),
                                    ptx::pack<T>(weights[2 * n + 1][0], weights[2 * n + 1][1]),
                                    ptx::pack<T>(weights[2 * n + 1][2], weights[2 * n + 1][3])};
#pragma unroll
        for (int d = 0; d < kDim / 16; ++d) {
          std::uint32_t v[4];
          ptx::load_matrices_transposed(
              v, stage + v_lane + (n * 16 * Shape::kStride + d * 16) * static_cast<int>(sizeof(T)));
          ptx::multiply_add<T>(out[2 * d], p, v[0], v[1]);
          ptx::multiply_add<T>(out[2 * d + 1], p, v[2], v[3]);
        }
      }
    }
  }

  const float inverse[2] = {1.0f / quad_sum(total[0]), 1.0f / quad_sum(total[1])};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = upper + 8 * r;
    if (row >= of.tokens) continue;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      if (d * 8 < a.head_dim) {
        store_pair_as(a.out, a.out_dtype, column + row * hidden + d * 8 + pair,
                      out[d][2 * r] * inverse[r], out[d][2 * r + 1] * inverse[r]);
      }
    }
  }
}

template <typename T, int kDim, int kKeys>
void launch(const AttentionArgs& args, int tokens, cudaStream_t stream) {
  constexpr int kBytes = Tiles<kDim, kKeys>::kBytes;
  // More shared memory than the 48 KiB that every device grants must be asked for, once; and as
  // much for all blocks together as there is: the kernel has no use for a larger L1 cache.
  static const bool granted = [] {
    ZI_CUDA(cudaFuncSetAttribute(prefill_kernel<T, kDim, kKeys>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    ZI_CUDA(cudaFuncSetAttribute(prefill_kernel<T, kDim, kKeys>,
                                 cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared));
    return true;
  }();
  static_cast<void>(granted);
  const dim3 grid(static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(tokens / kRows + args.sequences));
  prefill_kernel<T, kDim, kKeys><<<grid, kThreads, kBytes, stream>>>(args);
  ZI_CUDA_LAUNCHED();
}

/// Beyond 160, 32 keys at a time: more scores do not fit into registers next to that many columns
/// of results, nor do two steps of K and V fit into the shared memory of every device.
template <typename T>
void launch_type(const AttentionArgs& args, int tokens, cudaStream_t stream) {
  if (args.head_dim <= 32) {
    launch<T, 32, 64>(args, tokens, stream);
  } else if (args.head_dim <= 64) {
    launch<T, 64, 64>(args, tokens, stream);
  } else if (args.head_dim <= 80) {
    launch<T, 80, 64>(args, tokens, stream);
  } else if (args.head_dim <= 96) {
    launch<T, 96, 64>(args, tokens, stream);
  } else if (args.head_dim <= 128) {
    launch<T, 128, 64>(args, tokens, stream);
  } else if (args.head_dim <= 160) {
    launch<T, 160, 64>(args, tokens, stream);
  } else if (args.head_dim <= 192) {
    launch<T, 192, 32>(args, tokens, stream);
  } else {
    launch<T, 256, 32>(args, tokens, stream);
  }
}

}  // namespace

void launch_attention_prefill(const AttentionArgs& args, DType kv_dtype, int tokens,
                              cudaStream_t stream) {
  if (kv_dtype == DType::kBFloat16) {
    launch_type<__nv_bfloat16>(args, tokens, stream);
  } else {
    launch_type<__half>(args, tokens, stream);
  }
}

}  // namespace zi
