#include "engine/exchange_ops.h"

#include <array>
#include <span>
#include <vector>

namespace zi {
namespace {

/// Whether this rank's own block is all of the matrices that is here.
bool stays(const Matrices& w) { return w[0].only_block >= 0; }

/// The blocks that are here, as matrices of their own.
Matrices own_blocks(const Matrices& w) {
  std::vector<RowBlockMatrix> own;
  for (std::size_t i = 0; i < w.size(); ++i) own.push_back(w[i].own());
  return Matrices(own);
}

/// Columns that a rank multiplies of each matrix.
class Slices {
 public:
  explicit Slices(const Matrices& w) : size_(w.size()) {
    for (std::size_t i = 0; i < size_; ++i) columns_[i] = w[i].rows_per_block;
  }
  std::span<const std::int64_t> span() const { return std::span(columns_).first(size_); }

 private:
  std::array<std::int64_t, Matrices::kMost> columns_{};
  std::size_t size_;
};

std::size_t input_bytes(const Matrices& w, DType dtype) {
  return static_cast<std::size_t>(w.cols()) * size_of(dtype);
}

}  // namespace

void ExchangeOps::matmul(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                         float* y, Stream& stream) {
  if (!stays(w)) {
    ForwardingOps::matmul(a, a_dtype, rows, w, y, stream);
    return;
  }
  const Slices slices(w);
  exchange_->run(
      {a, input_bytes(w, a_dtype), y, DType::kFloat32, slices.span()}, most_,
      [&, own = own_blocks(w)](const std::byte* inputs, std::int64_t all, std::byte* results) {
        ForwardingOps::matmul(inputs, a_dtype, all, own, reinterpret_cast<float*>(results), stream);
      },
      stream);
}

void ExchangeOps::matmul_activate(const void* a, DType a_dtype, std::int64_t rows,
                                  const Matrices& w, const Activate& activate, float* product,
                                  void* y, DType y_dtype, Stream& stream) {
  if (!stays(w)) {
    ForwardingOps::matmul_activate(a, a_dtype, rows, w, activate, product, y, y_dtype, stream);
    return;
  }
  const RowBlockMatrix& first = w[0];
  if (first.rows != first.padded_rows()) {
    matmul(a, a_dtype, rows, w, product, stream);
    this->activate(product, w.padded_rows(), activate, rows, first.rows, y, y_dtype, stream);
    return;
  }
  const Matrices own = own_blocks(w);
  const auto own_part = [&](const float* bias) {
    return bias == nullptr ? nullptr : bias + first.only_block * first.rows_per_block;
  };
  Activate of_own = activate;
  of_own.bias = own_part(activate.bias);
  of_own.up = activate.up < 0 ? activate.up : own.first(1);
  of_own.up_bias = own_part(activate.up_bias);
  const std::array slices = {first.rows_per_block};
  exchange_->run(
      {a, input_bytes(w, a_dtype), y, y_dtype, slices}, most_,
      [&](const std::byte* inputs, std::int64_t all, std::byte* results) {
        // All rows of an own block take no more scratch than own rows of all blocks.
        ForwardingOps::matmul_activate(inputs, a_dtype, all, own, of_own, product, results, y_dtype,
                                       stream);
      },
      stream);
}

void ExchangeOps::matmul_qkv(const void* a, DType a_dtype, const Matrices& w, const QkvSplit& split,
                             const RaggedBatch& batch, const KvLayer& kv, float* product, float* q,
                             Stream& stream) {
  if (!stays(w)) {
    ForwardingOps::matmul_qkv(a, a_dtype, w, split, batch, kv, product, q, stream);
    return;
  }
  matmul(a, a_dtype, batch.tokens, w, product, stream);
  split_qkv(product, w.padded_rows(), split, batch, kv, q, stream);
}

}  // namespace zi
