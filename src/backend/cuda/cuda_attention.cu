#include <algorithm>

#include "backend/cuda/cuda_attention.h"
#include "backend/cuda/cuda_attention_kernels.cuh"

namespace zi {

void cuda_attention(const float* q, int heads, const RaggedBatch& batch, const KvLayer& kv,
                    const float* slopes, void* out, DType out_dtype, const AttentionMemory& memory,
                    cudaStream_t stream) {
  if (batch.tokens == 0 || batch.sequences == 0) return;
  const AttentionArgs args = {q,
                              batch.row_begin,
                              batch.context,
                              batch.block_tables,
                              batch.sequences,
                              batch.max_pages,
                              kv.data,
                              static_cast<std::uint32_t>(kv.page_bytes()),
                              heads,
                              heads / kv.heads,
                              kv.head_dim,
                              slopes,
                              out,
                              out_dtype};
  // Single rows wait for memory, many rows for arithmetic: each kernel leaves the other's sequences
  // out. Types and sizes that tensor cores do not take go row by row.
  const bool tensor_cores = kv.dtype != DType::kFloat32 && kv.head_dim % 8 == 0 &&
                            is_aligned(kv.data, 16) && is_aligned(q, 8) && is_aligned(out, 8);
  DecodeShape single{false, batch.sequences, 0, 0};
  DecodeShape all{true, batch.tokens, batch.tokens, 0};
  bool several = false;
  for (std::size_t s = 0; s < batch.host_context.size(); ++s) {
    const std::int32_t rows = batch.host_row_begin[s + 1] - batch.host_row_begin[s];
    if (rows == 0) continue;
    all.longest = std::max(all.longest, batch.host_context[s]);
    if (rows == 1) {
      ++single.active;
      single.longest = std::max(single.longest, batch.host_context[s]);
    } else {
      several = true;
    }
  }
  if (several && !tensor_cores) {
    launch_attention_decode(args, kv.dtype, all, memory, stream);
    return;
  }
  if (several && !launch_attention_hopper(args, kv.dtype, batch, stream)) {
    launch_attention_prefill(args, kv.dtype, batch.tokens, stream);
  }
  if (single.active == 0) return;
  // The kernel for groups pays off from a third page of keys on.
  if (tensor_cores && args.group > 1 && single.longest > 2 * kKvPageTokens) {
    launch_attention_grouped(args, kv.dtype, single, memory, stream);
  } else {
    launch_attention_decode(args, kv.dtype, single, memory, stream);
  }
}

}  // namespace zi
