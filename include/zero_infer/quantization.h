#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "zero_infer/weight_format.h"

namespace zi {

/// How another program has quantized a checkpoint's matrices, as `quantization_config` of its
/// config.json says (src/checkpoint/README.md has the formats and their sources). Such matrices are
/// read as packed rows of the same codes, scales and zero points.
struct Quantization {
  /// Where codes, scales and zero points of a matrix X.weight (out, in) are.
  enum class Layout : std::uint8_t {
    kNone,    // the checkpoint is not quantized, or was packed by `zero-infer pack`
    kGptq,    // X.qweight (in words, out), X.qzeros, X.scales, X.g_idx
    kAwq,     // X.qweight (in, out words), X.qzeros, X.scales
    kPacked,  // X.weight_packed (out, in words), X.weight_scale, X.weight_zero_point
    kInt8,    // X.weight of int8, X.weight_scale, X.weight_zero_point
    kFloat8,  // X.weight of float8, X.weight_scale or X.weight_scale_inv
  };

  Layout layout = Layout::kNone;
  std::string method;  // `quant_method` and what it says of the format, for messages
  /// Of the rows, as config.json says; the type of the scales is what the tensors say, and here
  /// what is usual. Without zero points in it, those that are stored are all in the middle.
  WeightFormat format;
  std::int64_t group_rows = 1;       // that share the scales of their groups
  int zero_offset = 0;               // zero points of GPTQ are stored less this
  bool symmetric = false;            // of GPTQ
  std::string symmetric_key;         // the key that says so, for messages
  bool ordered = false;              // each matrix says which group a column is of
  bool activations = false;          // the inputs of products are meant to be quantized, too
  bool kv_cache = false;             // and keys and values
  std::vector<std::string> unknown;  // keys that this version does not know

  /// All that decides the values.
  std::string text() const;

  bool operator==(const Quantization&) const = default;
};

}  // namespace zi
