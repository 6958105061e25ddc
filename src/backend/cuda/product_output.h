#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <variant>

#include "zero_infer/ops.h"

namespace zi {

/// Float32 sums, as Ops::matmul.
struct SumsOutput {
  static constexpr bool kMixed = false;
  float* y;         // (rows, ld)
  std::int64_t ld;  // of y
  bool fours;       // whether groups of four columns of y are aligned to their size
};

/// act(sum + bias) in the weights' type, as Ops::matmul_activate without a gate. The activation is
/// chosen while compiling: a choice in the kernel costs wide_matmul 5% of its time.
template <Activation kActivation>
struct ActivateOutput {
  static constexpr bool kMixed = false;
  const float* bias;  // (cols), or null
  void* y;            // (rows, cols)
  int cols;
};

/// act(sum + bias) * (sum of the second matrix + up_bias) in the weights' type, as
/// Ops::matmul_activate with a gate: of mixed tiles.
template <Activation kActivation>
struct GateOutput {
  static constexpr bool kMixed = true;
  const float* bias;     // (cols), or null
  const float* up_bias;  // (cols), or null
  void* y;               // (rows, cols)
  int cols;
};

/// Queries, and keys and values in the weights' type in their pages, as Ops::matmul_qkv of one
/// matrix whose columns are (heads, 3, head_dim), without norms and rotations; each row is the only
/// one of its sequence.
struct QkvOutput {
  static constexpr bool kMixed = false;
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
using ProductOutput =
    std::variant<SumsOutput, ActivateOutput<Activation::kGeluTanh>,
                 ActivateOutput<Activation::kRelu>, GateOutput<Activation::kSilu>, QkvOutput>;

/// Calls call(Output{}) with each of their types.
template <typename Call>
void for_each_output(const Call& call) {
  const auto each = [&]<typename... Outputs>(const std::variant<Outputs...>*) {
    (call(Outputs{}), ...);
  };
  each(static_cast<const ProductOutput*>(nullptr));
}

/// y (rows, w.padded_rows()).
SumsOutput sums_output(float* y, const Matrices& w);

/// None for activations that no kernel was compiled for.
std::optional<ProductOutput> activate_output(const Activate& activate, void* y, const Matrices& w);

/// Whether the columns are (heads, 3, head_dim): query, key and value of a head side by side.
bool is_interleaved(const QkvSplit& split, const KvLayer& kv);

/// None where QkvOutput does not do it.
std::optional<ProductOutput> qkv_output(const Matrices& w, const QkvSplit& split,
                                        const RaggedBatch& batch, const KvLayer& kv, float* q);

}  // namespace zi
