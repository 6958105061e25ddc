#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "backend/cuda/cuda_attention_memory.h"
#include "backend/cuda/cuda_attention_mma.cuh"
#include "backend/cuda/element.cuh"
#include "zero_infer/ops.h"

/// What the attention kernels share: arguments, the owner of a row, stores.
namespace zi {

/// RaggedBatch, KvLayer and the rest, as kernels take them. All pointers are to device memory.
struct AttentionArgs {
  const float* q = nullptr;  // (tokens, heads * head_dim)
  const std::int32_t* row_begin = nullptr;
  const std::int32_t* context = nullptr;
  const std::int32_t* block_tables = nullptr;
  int sequences = 0;
  int max_pages = 0;
  const std::byte* kv = nullptr;
  std::uint32_t page_bytes = 0;  // a few MiB at most, and 32 bits multiply faster
  int heads = 0;                 // of queries; `group` neighbours share a head of keys and values
  int group = 1;
  int head_dim = 0;
  const float* slopes = nullptr;  // (heads), or null
  void* out = nullptr;            // (tokens, heads * head_dim) of out_dtype
  DType out_dtype = DType::kFloat32;
};

/// What one launch of the decode kernel covers.
struct DecodeShape {
  /// Whether each of `queries` rows is a query (any rows of any sequences), or each of `queries`
  /// sequences, of which those with one row take part.
  bool by_row = false;
  int queries = 0;
  /// Queries with work, and the most keys that one of them has: they choose the grid.
  int active = 0;
  int longest = 0;
};

/// What contexts may grow to in a captured graph: batches whose pages' tables are of one shape have
/// the same.
inline std::int64_t context_bound(const DecodeShape& shape) {
  return std::bit_ceil(static_cast<std::uint32_t>(std::max(shape.longest, 1)));
}

/// exp2 of differences to a maximum that may be -inf as long as no key has been seen.
__device__ inline float reference_of(float maximum) {
  return maximum == -INFINITY ? 0.0f : maximum;
}

/// One query and head at a time, for any head_dim and type. See cuda_attention_decode.cu.
void launch_attention_decode(const AttentionArgs& args, DType kv_dtype, const DecodeShape& shape,
                             const AttentionMemory& memory, cudaStream_t stream);

/// One query at a time, each head of keys and values read once for its group, on tensor cores.
/// What launch_attention_prefill needs, and !shape.by_row. See cuda_attention_grouped.cu.
void launch_attention_grouped(const AttentionArgs& args, DType kv_dtype, const DecodeShape& shape,
                              const AttentionMemory& memory, cudaStream_t stream);

/// Sequences with more than one row, on tensor cores. `kv_dtype` is a 16-bit type, head_dim a
/// multiple of 8 up to 256, q and out are aligned to 8 bytes and kv to 16. See
/// cuda_attention_prefill.cu.
void launch_attention_prefill(const AttentionArgs& args, DType kv_dtype, int tokens,
                              cudaStream_t stream);

/// The same on Hopper's matrix units, with all queries of a group in one tile. Does nothing and
/// returns false on other devices, for head_dim other than 64 and 128, and where too many rows of
/// its large tiles would be empty. See cuda_attention_hopper.cu.
bool launch_attention_hopper(const AttentionArgs& args, DType kv_dtype, const RaggedBatch& batch,
                             cudaStream_t stream);

/// What a column of the fused projection belongs to: they are (heads, 3, head_dim).
struct QkvColumn {
  __device__ QkvColumn(int column, int head_dim) {
    const int third = column / head_dim;
    dim = column - third * head_dim;
    head = third / 3;
    part = third - 3 * head;
  }
  int part;  // 0: q, 1: k, 2: v
  int head;
  int dim;
};

/// Where in a page, in elements, a key or value is.
__device__ inline std::int64_t place_in_page(const QkvColumn& column, int slot, int heads,
                                             int head_dim) {
  const int before = column.head + (column.part == 2 ? heads : 0);
  return (static_cast<std::int64_t>(before) * kKvPageTokens + slot) * head_dim + column.dim;
}

/// exp(x) = exp2(x * log2(e)): scores are scaled once, and the hardware knows exp2.
inline constexpr float kLog2E = 1.4426950408889634f;

/// Two neighbours of a row of q, scaled, as a 16-bit pair; zeros beyond the row or the rows.
template <typename T>
__device__ inline std::uint32_t query_pair(const float* row, int column, int head_dim, bool there,
                                           float scale) {
  if (!there || column >= head_dim) return 0;
  const float2 pair = *reinterpret_cast<const float2*>(row + column);
  return ptx::pack<T>(pair.x * scale, pair.y * scale);
}

__device__ inline std::uint64_t page_offset(const AttentionArgs& args, std::int32_t page) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(page)) * args.page_bytes;
}

/// The sequence that owns a token row: all sequences before it end at or before the row, and so do
/// empty ones next to it. `sequences` if none does. Called by all threads of a block together: they
/// count in parallel, which waits for memory once, where a binary search would wait at each step.
__device__ inline int sequence_of_row(const std::int32_t* row_begin, int sequences, int row) {
  int before = 0;
  for (int first = 0; first < sequences; first += static_cast<int>(blockDim.x)) {
    const int s = first + static_cast<int>(threadIdx.x);
    before += __syncthreads_count(s < sequences && row_begin[s + 1] <= row ? 1 : 0);
  }
  return before;
}

__device__ inline void store_as(void* out, DType dtype, std::int64_t index, float value) {
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(out)[index] = value;
      break;
    case DType::kFloat16:
      static_cast<__half*>(out)[index] = from_float<__half>(value);
      break;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(out)[index] = from_float<__nv_bfloat16>(value);
      break;
  }
}

/// Two neighbours at once; `index` is even, and `out` aligned to 8 bytes.
__device__ inline void store_pair_as(void* out, DType dtype, std::int64_t index, float first,
                                     float second) {
  switch (dtype) {
    case DType::kFloat32:
      *reinterpret_cast<float2*>(static_cast<float*>(out) + index) = make_float2(first, second);
      break;
    case DType::kFloat16:
      *reinterpret_cast<__half2*>(static_cast<__half*>(out) + index) =
          __floats2half2_rn(first, second);
      break;
    case DType::kBFloat16:
      *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(out) + index) =
          __floats2bfloat162_rn(first, second);
      break;
  }
}

}  // namespace zi
