#include "backend/cuda/cuda_attention_kernels.cuh"
#include "backend/cuda/cuda_positions.h"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/launch.cuh"

namespace zi {
namespace {

constexpr int kThreads = 256;

struct Positions {
  const std::int32_t* row_begin;
  const std::int32_t* context;
  int sequences;
};

Positions positions_of(const RaggedBatch& batch) {
  return {batch.row_begin, batch.context, batch.sequences};
}

/// -1 for a row that no sequence owns. Called by all threads of a block together.
__device__ inline int position_of(const Positions& of, int row) {
  const int sequence = sequence_of_row(of.row_begin, of.sequences, row);
  if (sequence >= of.sequences) return -1;
  return of.context[sequence] - of.row_begin[sequence + 1] + row;
}

/// A block for each row.
__global__ void __launch_bounds__(kThreads)
    add_positions_kernel(const float* table, std::int64_t first, Positions positions,
                         std::int64_t cols, float* x) {
  wait_for_previous();
  const auto row = static_cast<int>(blockIdx.x);
  const int position = position_of(positions, row);
  if (position < 0) return;
  const float* const from = table + (first + position) * cols;
  float* const to = x + row * cols;
  for (std::int64_t i = threadIdx.x; i < cols; i += kThreads) to[i] += from[i];
}

/// A block for each row. Sines and cosines of large angles are reduced exactly.
__global__ void __launch_bounds__(kThreads)
    rotations_kernel(const float* frequencies, int pairs, float scale, Positions positions,
                     float* out) {
  wait_for_previous();
  const auto row = static_cast<int>(blockIdx.x);
  const int position = position_of(positions, row);
  if (position < 0) return;
  auto* const to = reinterpret_cast<float2*>(out) + static_cast<std::int64_t>(row) * pairs;
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kThreads) {
    float sine, cosine;
    sincosf(static_cast<float>(position) * frequencies[i], &sine, &cosine);
    to[i] = make_float2(cosine * scale, sine * scale);
  }
}

}  // namespace

void cuda_add_positions(const float* table, std::int64_t first, const RaggedBatch& batch,
                        std::int64_t cols, float* x, cudaStream_t stream) {
  if (batch.tokens == 0 || batch.sequences == 0) return;
  launch_early(add_positions_kernel, static_cast<unsigned>(batch.tokens), kThreads, 0, stream,
               table, first, positions_of(batch), cols, x);
}

void cuda_rotations(const float* frequencies, int pairs, float scale, const RaggedBatch& batch,
                    float* out, cudaStream_t stream) {
  if (batch.tokens == 0 || batch.sequences == 0) return;
  launch_early(rotations_kernel, static_cast<unsigned>(batch.tokens), kThreads, 0, stream,
               frequencies, pairs, scale, positions_of(batch), out);
}

}  // namespace zi
