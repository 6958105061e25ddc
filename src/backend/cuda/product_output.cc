#include "backend/cuda/product_output.h"

namespace zi {

SumsOutput sums_output(float* y, const Matrices& w) {
  bool fours = reinterpret_cast<std::uintptr_t>(y) % 16 == 0;
  for (std::size_t i = 0; i < w.size(); ++i) fours = fours && w[i].padded_rows() % 4 == 0;
  return {y, w.padded_rows(), fours};
}

std::optional<ProductOutput> activate_output(const Activate& activate, void* y, const Matrices& w) {
  const auto cols = static_cast<int>(w[0].rows);
  if (activate.up >= 0) {
    if (w.size() != 2 || activate.up != w.first(1) || w[1].rows != w[0].rows ||
        w[1].padded_rows() != w[0].padded_rows() || activate.activation != Activation::kSilu) {
      return std::nullopt;
    }
    return GateOutput<Activation::kSilu>{activate.bias, activate.up_bias, y, cols};
  }
  if (w.size() != 1) return std::nullopt;
  switch (activate.activation) {
    case Activation::kGeluTanh:
      return ActivateOutput<Activation::kGeluTanh>{activate.bias, y, cols};
    case Activation::kRelu:
      return ActivateOutput<Activation::kRelu>{activate.bias, y, cols};
    case Activation::kGelu:
    case Activation::kSilu:
      break;
  }
  return std::nullopt;
}

bool is_interleaved(const QkvSplit& split, const KvLayer& kv) {
  const std::int64_t d = kv.head_dim;
  const auto stands_at = [&](const HeadColumns& part, std::int64_t first) {
    const float* const bias = split.q.bias == nullptr ? nullptr : split.q.bias + first;
    return part.first == first && part.step == 3 * d && part.bias == bias;
  };
  return split.heads == kv.heads && split.q_norm == nullptr && split.k_norm == nullptr &&
         split.rotations == nullptr && stands_at(split.q, 0) && stands_at(split.k, d) &&
         stands_at(split.v, 2 * d);
}

std::optional<ProductOutput> qkv_output(const Matrices& w, const QkvSplit& split,
                                        const RaggedBatch& batch, const KvLayer& kv, float* q) {
  if (w.size() != 1 || !is_interleaved(split, kv)) return std::nullopt;
  const auto& begin = batch.host_row_begin;
  if (batch.tokens != batch.sequences) return std::nullopt;
  for (std::size_t s = 0; s + 1 < begin.size(); ++s) {
    if (begin[s + 1] - begin[s] != 1) return std::nullopt;
  }
  return QkvOutput{split.q.bias,    q,       batch.context,   batch.block_tables,
                   batch.max_pages, kv.data, kv.page_bytes(), kv.heads,
                   kv.head_dim};
}

}  // namespace zi
