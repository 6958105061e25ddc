#include "backend/cuda/cuda_attention_kernels.cuh"
#include "backend/cuda/cuda_attention_mma.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/hopper_mma.cuh"
#include "backend/cuda/kernel_architecture.h"
#include "backend/cuda/kernel_probe.h"
#include "backend/cuda/prompt_tile.cuh"
#include "backend/cuda/tensor_map.h"
#include "zero_infer/bytes.h"

/// Attention of sequences with several rows on Hopper's matrix units. A block takes 128 rows: as
/// many tokens as fit with all queries of a group, so that their keys and values come to the chip
/// once for all of them. It meets the keys 128 at a time, in a ring in shared memory, to which a
/// warp of its own has them copied. Weights stay in registers between the two products. Each of two
/// warpgroups has 64 rows, and they take turns: one gives the matrix units its products with the
/// keys of a step and with the values of the step before, and meanwhile the other one computes
/// weights.
namespace zi {
namespace {

constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kWarpgroups = 2;  // that compute
constexpr int kRows = kGroupRows * kWarpgroups;
constexpr int kComputingThreads = 128 * kWarpgroups;
constexpr int kThreads = kComputingThreads + 128;  // and a warpgroup that copies
constexpr int kComputingRegisters = 240;
constexpr int kCopyingRegisters = 24;
constexpr int kKeys = 128;  // of a step
constexpr int kPages = kKeys / kKvPageTokens;
constexpr int kStages = 3;
constexpr int kAlignment = 1024;
/// How far a score may be above what weights are relative to, in powers of two: sums are multiplied
/// anew only where one is further above.
constexpr float kSlack = 8;

/// Waits for the warpgroup's turn at the matrix units, and passes it on.
__device__ __forceinline__ void wait_for_turn(int warpgroup) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(warpgroup + 1), "n"(kComputingThreads) : "memory");
}
__device__ __forceinline__ void give_turn(int warpgroup) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(warpgroup + 1), "n"(kComputingThreads) : "memory");
}

/// A barrier of the threads of a warpgroup alone.
__device__ __forceinline__ void wait_for_warpgroup(int warpgroup) {
  asm volatile("bar.sync %0, 128;\n" ::"r"(kWarpgroups + warpgroup + 1) : "memory");
}

/// A stage: K, then V, each in blocks of 64 elements of all keys, as describe_rows says.
template <int kDim>
struct Stage {
  static constexpr std::uint32_t kBlockBytes = kKeys * 128;
  static constexpr std::uint32_t kMatrixBytes = kBlockBytes * (kDim / 64);
  static constexpr std::uint32_t kBytes = 2 * kMatrixBytes;
  /// The queries of all warpgroups lie in front of the ring, in the same way.
  static constexpr std::uint32_t kQueryBlockBytes = kGroupRows * 128;
  static constexpr std::uint32_t kQueryBytes = kQueryBlockBytes * (kDim / 64);
  static constexpr int kSharedBytes =
      static_cast<int>(kWarpgroups * kQueryBytes + kStages * kBytes) + kAlignment;
  /// A step is copied by page and block.
  static constexpr int kBoxBytes = kKvPageTokens * 128;
  static constexpr int kBoxesOfPage = 2 * kDim / 64;
  static_assert(kPages * kBoxesOfPage <= 32, "one for each lane of a warp");
};

/// The barriers of the ring: a stage's keys are there (one arrival), they are used up (one of each
/// warp that computes).
struct Ring {
  std::uint32_t stages, full, used;

  __device__ __forceinline__ std::uint32_t full_of(int stage) const { return full + stage * 8; }
  __device__ __forceinline__ std::uint32_t used_of(int stage) const { return used + stage * 8; }
};

/// Copies the keys and values of a tile to the ring, step by step; by one warp.
template <int kDim>
__device__ __forceinline__ void copy_steps(const AttentionArgs &a, const CUtensorMap &map,
                                           const PromptTile &of, int kv_head, const Ring &ring) {
  using S = Stage<kDim>;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int own_page = lane / S::kBoxesOfPage;  // of those of a step
  const int block = lane % S::kBoxesOfPage;
  const bool values = block >= kDim / 64;
  const int column = block % (kDim / 64) * 64;
  const int page_rows = static_cast<int>(a.page_bytes / (kDim * 2));
  const int first_row = (values ? page_rows / 2 : 0) + kv_head * kKvPageTokens;
  const std::uint32_t own_box = ring.stages + block * S::kBlockBytes + own_page * S::kBoxBytes;

  const std::int32_t *const table =
      a.block_tables + static_cast<std::int64_t>(of.sequence) * a.max_pages;
  const int pages = (of.keys + kKvPageTokens - 1) / kKvPageTokens;
  int page = own_page < kPages && own_page < pages ? table[own_page] : 0;
  for (int step = 0, stage = 0, parity = 1; step * kPages < pages; ++step) {
    const int left = pages - step * kPages;
    const int next = step * kPages + kPages + own_page;
    const int next_page = own_page < kPages && next < pages ? table[next] : 0;
    ptx::wait_for_phase(ring.used_of(stage), parity);  // at first, it is
    if (lane == 0) {
      ptx::arrive_expecting(ring.full_of(stage),
                            min(left, kPages) * S::kBoxesOfPage * S::kBoxBytes);
    }
    __syncwarp();
    if (own_page < min(left, kPages)) {
      ptx::copy_box(own_box + stage * S::kBytes, map, column, page * page_rows + first_row,
                    ring.full_of(stage));
    }
    page = next_page;
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

/// Grid: (heads of K and V, tokens / tile_tokens + sequences), tiles as PromptTile says; row r of
/// one is token r / group and head r % group.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    hopper_prefill_kernel(const AttentionArgs a, const __grid_constant__ CUtensorMap map,
                          const int tile_tokens) {
  using S = Stage<kDim>;
  extern __shared__ std::byte memory[];
  __shared__ std::uint64_t barriers[2 * kStages];
  const std::uint32_t start = ptx::shared_address(memory);
  const std::uint32_t queries = (start + kAlignment - 1) / kAlignment * kAlignment;
  const std::uint32_t barrier = ptx::shared_address(barriers);
  const Ring ring{queries + kWarpgroups * S::kQueryBytes, barrier, barrier + kStages * 8};

  const auto thread = static_cast<int>(threadIdx.x);
  const auto kv_head = static_cast<int>(blockIdx.x);
  // The last tiles of a prompt meet most keys: they go first.
  const auto tile = static_cast<int>(gridDim.y - 1 - blockIdx.y);
  const PromptTile of = PromptTile::find<kThreads>(a, tile, tile_tokens).in_all_lanes();
  if (of.tokens == 0) return;

  if (thread == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::make_barrier(ring.full_of(stage), 1);
      ptx::make_barrier(ring.used_of(stage), kComputingThreads / 32);
    }
    ptx::show_barriers();
  }
  __syncthreads();
  const int warp = __shfl_sync(0xffffffffu, thread / 32, 0);  // as PromptTile::in_all_lanes
  const int warpgroup = warp / 4;
  if (warpgroup == kWarpgroups) {
    ptx::give_registers_but<kCopyingRegisters>();
    if (warp % 4 == 0) copy_steps<kDim>(a, map, of, kv_head, ring);
    return;
  }
  ptx::take_registers<kComputingRegisters>();

  const int lane = thread % 32;
  const int pair = 2 * (lane % 4);  // the first of this lane's columns
  const int group_row = warpgroup * kGroupRows;
  const bool has_rows = group_row < of.tokens * a.group;
  // Of the warpgroup's first and last rows; one without rows meets no keys.
  const int first_position = of.position + group_row / a.group;
  const int last_position =
      has_rows ? of.position + min((group_row + kGroupRows - 1) / a.group, of.tokens - 1) : -1;
  // This lane's two rows.
  int row_position[2];
  bool there[2];
  std::int64_t column[2];  // in q and out
  float slope[2];
  const std::uint32_t own_queries = queries + warpgroup * S::kQueryBytes;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp * 16 + lane / 4 + 8 * r;
    const int token = row / a.group;
    const int head = kv_head * a.group + row % a.group;
    there[r] = token < of.tokens;
    row_position[r] = of.position + token;
    column[r] = (static_cast<std::int64_t>(of.first + token) * a.heads + head) * kDim;
    slope[r] = a.slopes == nullptr ? 0.0f : a.slopes[head] * kLog2E;
    const float scale = kLog2E * rsqrtf(static_cast<float>(kDim));
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const std::uint32_t to = own_queries + i / 8 * S::kQueryBlockBytes +
                               ptx::swizzled(row % kGroupRows, i % 8) + pair * sizeof(T);
      *reinterpret_cast<std::uint32_t *>(memory + (to - start)) =
          query_pair<T>(a.q + column[r], i * 8 + pair, kDim, there[r], scale);
    }
  }

  float out[kDim / 2];
#pragma unroll
  for (float &sum : out) sum = 0.0f;
  float reference[2] = {-INFINITY, -INFINITY};  // weights are relative to that score
  float total[2] = {0.0f, 0.0f};                // of this lane's columns
  float weights[kKeys / 2];
  std::uint32_t p[kKeys / 16][4];

  const auto values_of = [&](int stage) {
    return ring.stages + stage * S::kBytes + S::kMatrixBytes;
  };
  /// Begins weights = the scores of the keys in a stage.
  const auto begin_scores = [&](int stage) {
    const std::uint64_t q = ptx::describe_rows(own_queries);
    const std::uint64_t k = ptx::describe_rows(ring.stages + stage * S::kBytes);
#pragma unroll
    for (float &weight : weights) weight = 0.0f;
    ptx::begin_products();
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      ptx::multiply_add_async<T, kKeys>(weights, q + i / 4 * (S::kQueryBlockBytes / 16) + i % 4 * 2,
                                        k + i / 4 * (S::kBlockBytes / 16) + i % 4 * 2);
    }
    ptx::commit_products();
  };
  /// Begins out += p . the values in a stage.
  const auto begin_values = [&](int stage) {
    const std::uint64_t v = ptx::describe_columns(values_of(stage), S::kBlockBytes);
    ptx::begin_products();
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      ptx::multiply_add_async<T, kDim, true>(out, p[n], v + 128 * n, true);
    }
    ptx::commit_products();
  };
  /// Turns the scores of a step into weights. True where references of the warp's rows have
  /// changed: then out must be multiplied by `fade`.
  const auto weigh = [&](int step, float(&fade)[2]) {
    const int first_key = step * kKeys;
    const int first_column = first_key + pair;
    // ALiBi is relative to the row's own position: softmax does not see that, and near keys, which
    // weigh most, carry the smallest rounding. What a row's keys share is added to none of them.
    float shared[2] = {0.0f, 0.0f};
    if (a.slopes != nullptr) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        shared[r] = slope[r] * static_cast<float>(first_column - row_position[r]);
      }
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        weights[i] = fmaf(slope[i / 2 % 2], static_cast<float>(i / 4 * 8 + i % 2), weights[i]);
      }
    }
    if (first_key + kKeys - 1 > first_position) {  // some row does not see some key
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        if (first_column + i / 4 * 8 + i % 2 > row_position[i / 2 % 2]) weights[i] = -INFINITY;
      }
    }
    // All rows see key 0: from the first step on, references are finite.
    float best[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) best[i / 2 % 2] = fmaxf(best[i / 2 % 2], weights[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) best[r] = quad_maximum(best[r] + shared[r]);
    // Differences: a sum of a large reference and the slack would be rounded.
    const bool changes =
        __any_sync(0xffffffffu, best[0] - reference[0] > kSlack || best[1] - reference[1] > kSlack);
    if (changes) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        best[r] = fmaxf(best[r], reference[r]);
        fade[r] = ptx::exp2(reference[r] - best[r]);
        reference[r] = best[r];
        total[r] *= fade[r];
      }
    }
    const float of_weights[2] = {reference[0] - shared[0], reference[1] - shared[1]};
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      weights[i] = ptx::exp2(weights[i] - of_weights[i / 2 % 2]);
      total[i / 2 % 2] += weights[i];
    }
    return changes;
  };
  const auto pack_weights = [&] {
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[n][i] = ptx::pack<T>(weights[8 * n + 2 * i], weights[8 * n + 2 * i + 1]);
      }
    }
  };

  const auto before_of = [](int stage) { return stage == 0 ? kStages - 1 : stage - 1; };
  const int steps = (of.keys + kKeys - 1) / kKeys;
  const int own_steps = has_rows ? last_position / kKeys + 1 : 0;
  const auto pass_turn = [&](int step) {
    if (step + 1 < steps || warpgroup + 1 < kWarpgroups) give_turn((warpgroup + 1) % kWarpgroups);
  };
  const auto release = [&](int stage) {
    if (lane == 0) ptx::arrive(ring.used_of(stage));
  };
  /// Slots that hold no key yet may hold NaN, which a weight of zero would not silence.
  const auto clear_values = [&](int stage) {
    const int piece = of.keys % kKeys * 8 + thread % 128;  // of 16 bytes
    for (std::uint32_t block = 0; block < kDim / 64; ++block) {
      const std::uint32_t values = values_of(stage) + block * S::kBlockBytes - start;
      for (int i = piece; i < kKeys * 8; i += 128) {
        *reinterpret_cast<uint4 *>(memory + values + i * 16) = uint4{};
      }
    }
    ptx::show_to_async_proxy();
    wait_for_warpgroup(warpgroup);
  };

  if (warpgroup == kWarpgroups - 1) give_turn(0);
  ptx::show_to_async_proxy();  // the queries
  wait_for_warpgroup(warpgroup);

  int stage = 0, parity = 0;
  const auto next_stage = [&] {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  };
  if (own_steps > 0) {
    ptx::wait_for_phase(ring.full_of(0), 0);
    wait_for_turn(warpgroup);
    begin_scores(0);
    pass_turn(0);
    ptx::wait_for_products();
    ptx::take_sums(weights);
    float fade[2];  // of nothing
    weigh(0, fade);
    pack_weights();
    next_stage();
  }
  for (int step = 1; step < own_steps; ++step) {
    ptx::wait_for_phase(ring.full_of(stage), parity);
    wait_for_turn(warpgroup);
    begin_scores(stage);
    begin_values(before_of(stage));
    pass_turn(step);
    ptx::wait_for_products_but<1>();
    ptx::take_sums(weights);
    float fade[2];
    const bool changes = weigh(step, fade);
    ptx::wait_for_products();
    ptx::take_sums(out);
    release(before_of(stage));
    if (changes) {
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) out[i] *= fade[i / 2 % 2];
    }
    pack_weights();
    next_stage();
  }
  if (own_steps > 0) {
    if (own_steps == steps && of.keys % kKeys != 0) clear_values(before_of(stage));
    begin_values(before_of(stage));
    ptx::wait_for_products();
    ptx::take_sums(out);
  }
  for (int step = own_steps; step < steps; ++step) {  // keys for the other warpgroup
    ptx::wait_for_phase(ring.full_of(stage), parity);
    wait_for_turn(warpgroup);
    pass_turn(step);
    if (step > 0) release(before_of(stage));
    next_stage();
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float inverse = 1.0f / quad_sum(total[r]);
    if (!there[r]) continue;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      store_pair_as(a.out, a.out_dtype, column[r] + d * 8 + pair, out[4 * d + 2 * r] * inverse,
                    out[4 * d + 2 * r + 1] * inverse);
    }
  }
}

template <typename T, int kDim>
void launch(const AttentionArgs &args, int tokens, cudaStream_t stream) {
  constexpr int kBytes = Stage<kDim>::kSharedBytes;
  // More shared memory than the 48 KiB that every device grants must be asked for, once.
  static const bool granted = [] {
    ZI_CUDA(cudaFuncSetAttribute(hopper_prefill_kernel<T, kDim>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    ZI_CUDA(cudaFuncSetAttribute(hopper_prefill_kernel<T, kDim>,
                                 cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared));
    return true;
  }();
  static_cast<void>(granted);
  const int tile_tokens = kRows / args.group;
  const dim3 grid(static_cast<unsigned>(args.heads / args.group),
                  static_cast<unsigned>(tokens / tile_tokens + args.sequences));
  hopper_prefill_kernel<T, kDim><<<grid, kThreads, kBytes, stream>>>(
      args, map_of_rows(args.kv, kDim, kKvPageTokens), tile_tokens);
  ZI_CUDA_LAUNCHED();
}

template <typename T>
void launch_type(const AttentionArgs &args, int tokens, cudaStream_t stream) {
  if (args.head_dim == 64) {
    launch<T, 64>(args, tokens, stream);
  } else {
    launch<T, 128>(args, tokens, stream);
  }
}

/// Whether tiles would be full enough to be faster than those of cuda_attention_prefill.cu.
bool fills_tiles(const AttentionArgs &args, const RaggedBatch &batch) {
  constexpr double kLeast = 0.8;
  if (args.group > kRows) return false;
  const std::int64_t tile_tokens = kRows / args.group;
  std::int64_t tokens = 0, tiles = 0;
  for (std::size_t s = 0; s < batch.host_context.size(); ++s) {
    const std::int64_t rows = batch.host_row_begin[s + 1] - batch.host_row_begin[s];
    if (rows <= 1) continue;
    tokens += rows;
    tiles += ceil_div(rows, tile_tokens);
  }
  return static_cast<double>(tokens * args.group) >= kLeast * static_cast<double>(tiles * kRows);
}

}  // namespace

bool launch_attention_hopper(const AttentionArgs &args, DType kv_dtype, const RaggedBatch &batch,
                             cudaStream_t stream) {
  static const bool here = [] {
    const auto *const kernel =
        reinterpret_cast<const void *>(hopper_prefill_kernel<__nv_bfloat16, 128>);
    return kernel_features(compiled_architecture(kernel), device_architecture()).hopper_products;
  }();
  if (!here || (args.head_dim != 64 && args.head_dim != 128) || !fills_tiles(args, batch)) {
    return false;
  }
  if (kv_dtype == DType::kBFloat16) {
    launch_type<__nv_bfloat16>(args, batch.tokens, stream);
  } else {
    launch_type<__half>(args, batch.tokens, stream);
  }
  return true;
}

}  // namespace zi
