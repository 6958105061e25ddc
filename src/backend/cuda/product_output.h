#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <variant>

#include "zero_infer/ops.h"

namespace zi {

/// Float32 sums, as Ops::matmul.
struct SumsOutput {
  float* y;         // (rows, ld)
  std::int64_t ld;  // of y
  int cols;         // of the product
};

/// act(sum + bias) in the weights' type, as Ops::matmul_activate without a gate. The activation is
/// chosen while compiling: a choice in the kernel costs wide_matmul 5% of its time.
template <Activation kActivation>
struct ActivateOutput {
  const float* bias;  // (cols), or null
  void* y;            // (rows, cols)
  int cols;
};

/// Queries, and keys and values in the weights' type in their pages, as Ops::matmul_qkv of one
/// matrix whose columns are (heads, 3, head_dim), without norms and rotations; each row is the only
/// one of its sequence.
struct QkvOutput {
  const float* bias;  // (3 * heads * head_dim), or null
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
using ProductOutput = std::variant<SumsOutput, ActivateOutput<Activation::kGeluTanh>,
                                   ActivateOutput<Activation::kRelu>, QkvOutput>;

/// None with a gate, and for activations that no kernel was compiled for.
std::optional<ProductOutput> activate_output(const Activate& activate, void* y, const Matrices& w);

/// Whether the columns are (heads, 3, head_dim): query, key and value of a head side by side.
bool is_interleaved(const QkvSplit& split, const KvLayer& kv);

/// None where QkvOutput does not do it.
std::optional<ProductOutput> qkv_output(const Matrices& w, const QkvSplit& split,
                                        const RaggedBatch& batch, const KvLayer& kv, float* q);

}  // namespace zi
