#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/cuda_attention_memory.h"
#include "zero_infer/ops.h"

namespace zi {

/// Ops::split_qkv on a CUDA stream.
void cuda_split_qkv(const float* qkv, std::int64_t ld, const QkvSplit& split,
                    const RaggedBatch& batch, const KvLayer& kv, float* q, cudaStream_t stream);

/// The same of a product whose columns are (heads, 3, head_dim), in kv.dtype and with its biases.
void cuda_split_rounded_qkv(const void* qkv, std::int64_t ld, const RaggedBatch& batch,
                            const KvLayer& kv, float* q, cudaStream_t stream);

/// Ops::attention on a CUDA stream.
void cuda_attention(const float* q, int heads, const RaggedBatch& batch, const KvLayer& kv,
                    const float* slopes, void* out, DType out_dtype, const AttentionMemory& memory,
                    cudaStream_t stream);

}  // namespace zi
