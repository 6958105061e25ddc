#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <span>

#include "zero_infer/ops.h"

namespace zi {

/// Ops::split_qkv on a CUDA stream.
void cuda_split_qkv(const float* qkv, std::int64_t ld, const QkvSplit& split,
                    const RaggedBatch& batch, const KvLayer& kv, float* q, cudaStream_t stream);

/// Ops::attention on a CUDA stream. `scratch` is device memory for partial results, at least
/// kAttentionScratchBytes, used in the stream's order.
void cuda_attention(const float* q, int heads, const RaggedBatch& batch, const KvLayer& kv,
                    const float* slopes, void* out, DType out_dtype, std::span<std::byte> scratch,
                    cudaStream_t stream);

inline constexpr std::size_t kAttentionScratchBytes = std::size_t{32} << 20;

}  // namespace zi
