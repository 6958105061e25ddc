#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <variant>

#include "zero_infer/ops.h"

namespace zi {

/// Float32 sums, as Ops::matmul.
struct SumsOutput {
  float* y;  // (rows, ld)
  int ld;
};

/// gelu(sum + bias) in the weights' type, as Ops::matmul_gelu.
struct GeluOutput {
  const float* bias;  // (cols)
  void* y;            // (rows, cols)
  int cols;
};

/// Queries, and keys and values in the weights' type in their pages, as Ops::matmul_qkv; each row
/// is the only one of its sequence.
struct QkvOutput {
  const float* bias;  // (3 * heads * head_dim)
  float* q;           // (rows, heads * head_dim)
  const std::int32_t* context;
  const std::int32_t* block_tables;
  int max_pages;
  std::byte* kv;
  std::size_t page_bytes;
  int heads;
  int head_dim;
};

/// What is done with the sums of a product of few rows.
using ProductOutput = std::variant<SumsOutput, GeluOutput, QkvOutput>;

/// None for a batch in which some sequence has more than one row.
inline std::optional<QkvOutput> qkv_output(const float* bias, const RaggedBatch& batch,
                                           const KvLayer& kv, float* q) {
  const auto& begin = batch.host_row_begin;
  if (batch.tokens != batch.sequences) return std::nullopt;
  for (std::size_t s = 0; s + 1 < begin.size(); ++s) {
    if (begin[s + 1] - begin[s] != 1) return std::nullopt;
  }
  return QkvOutput{bias,
                   q,
                   batch.context,
                   batch.block_tables,
                   batch.max_pages,
                   kv.data,
                   kv.page_bytes(),
                   kv.heads,
                   kv.head_dim};
}

}  // namespace zi
