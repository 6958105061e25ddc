#include <type_traits>

#include "backend/cuda/cuda_attention.h"
#include "backend/cuda/cuda_attention_kernels.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/launch.cuh"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;  // loads in flight

struct SplitArgs {
  const float* qkv = nullptr;
  std::int64_t ld = 0;
  const float* bias = nullptr;
  const std::int32_t* row_begin = nullptr;
  const std::int32_t* context = nullptr;
  const std::int32_t* block_tables = nullptr;
  int sequences = 0;
  int max_pages = 0;
  std::byte* kv = nullptr;
  std::size_t page_bytes = 0;
  int heads = 0;
  int head_dim = 0;
  float* q = nullptr;
};

template <int kWidth>
using Floats = std::conditional_t<kWidth == 4, float4, float>;

__device__ inline float add(float a, float b) { return a + b; }
__device__ inline float4 add(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

template <typename T>
__device__ inline void store(T* at, float value) {
  *at = from_float<T>(value);
}

template <typename T>
__device__ inline void store(T* at, float4 value) {
  store_four(at, value);
}

/// One block for each row and kThreads * kPerThread of its columns, taken kWidth at a time.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) split_kernel(const SplitArgs a) {
  wait_for_previous();
  const auto row = static_cast<int>(blockIdx.x);
  const int columns = 3 * a.heads * a.head_dim / kWidth;
  const int first = static_cast<int>(blockIdx.y * kThreads * kPerThread + threadIdx.x);
  const auto* const in = reinterpret_cast<const Floats<kWidth>*>(a.qkv + row * a.ld);
  const auto* const bias = reinterpret_cast<const Floats<kWidth>*>(a.bias);
  Floats<kWidth> values[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int column = first + i * kThreads;
    if (column < columns) values[i] = add(in[column], bias[column]);
  }
  // The loads above are under way while the row finds its sequence.
  const int sequence = sequence_of_row(a.row_begin, a.sequences, row);
  if (sequence >= a.sequences) return;
  const int position = a.context[sequence] - a.row_begin[sequence + 1] + row;
  const std::int32_t page =
      a.block_tables[static_cast<std::int64_t>(sequence) * a.max_pages + position / kKvPageTokens];
  const int slot = position % kKvPageTokens;
  T* const in_page = reinterpret_cast<T*>(a.kv + static_cast<std::size_t>(page) * a.page_bytes);
  float* const q = a.q + static_cast<std::int64_t>(row) * a.heads * a.head_dim;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int column = first + i * kThreads;
    if (column >= columns) break;
    const QkvColumn of(column * kWidth, a.head_dim);
    if (of.part == 0) {
      store(q + static_cast<std::int64_t>(of.head) * a.head_dim + of.dim, values[i]);
    } else {
      store(in_page + place_in_page(of, slot, a.heads, a.head_dim), values[i]);
    }
  }
}

template <typename T>
void launch(const SplitArgs& args, int tokens, cudaStream_t stream) {
  const bool four = args.head_dim % 4 == 0 && args.ld % 4 == 0 && is_aligned(args.qkv, 16) &&
                    is_aligned(args.bias, 16) && is_aligned(args.q, 16) &&
                    is_aligned(args.kv, 4 * sizeof(T));
  const std::int64_t columns = std::int64_t{3} * args.heads * args.head_dim / (four ? 4 : 1);
  const dim3 grid(static_cast<unsigned>(tokens),
                  static_cast<unsigned>(ceil_div(columns, kThreads * kPerThread)));
  if (four) {
    launch_early(split_kernel<T, 4>, grid, kThreads, 0, stream, args);
  } else {
    launch_early(split_kernel<T, 1>, grid, kThreads, 0, stream, args);
  }
}

}  // namespace

void cuda_split_qkv(const float* qkv, std::int64_t ld, const float* bias, const RaggedBatch& batch,
                    const KvLayer& kv, float* q, cudaStream_t stream) {
  if (batch.tokens == 0 || batch.sequences == 0) return;
  const SplitArgs args = {qkv,
                          ld,
                          bias,
                          batch.row_begin,
                          batch.context,
                          batch.block_tables,
                          batch.sequences,
                          batch.max_pages,
                          kv.data,
                          kv.page_bytes(),
                          kv.heads,
                          kv.head_dim,
                          q};
  with_type(kv.dtype, [&](auto element) { launch<decltype(element)>(args, batch.tokens, stream); });
}

}  // namespace zi
