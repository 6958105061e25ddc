#pragma once

#include <cstdint>
#include <memory>

#include "engine/forwarding_ops.h"
#include "engine/row_exchange.h"
#include "zero_infer/ops.h"

namespace zi {

/// Ops that send products with matrices of which only the own block is here through a RowExchange,
/// and hand on all else. Every rank must enqueue the same of these products in the same order; a
/// rank without rows takes part with none.
///
/// Inputs, scratch memory and results of such a product have room for as many rows as any rank has.
class ExchangeOps final : public ForwardingOps {
 public:
  ExchangeOps(std::shared_ptr<Ops> inner, RowExchange& exchange)
      : ForwardingOps(std::move(inner)), exchange_(&exchange) {}

  /// The largest row count of any rank, for the products from here on; the same on every rank.
  void begin_pass(std::int64_t most) { most_ = most; }

  void matmul(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w, float* y,
              Stream& stream) override;
  /// The activation is applied before results travel, in y's type, where each rank has equally many
  /// rows of the matrices: then biases are cut as they are.
  void matmul_activate(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                       const Activate& activate, float* product, void* y, DType y_dtype,
                       Stream& stream) override;
  void matmul_qkv(const void* a, DType a_dtype, const Matrices& w, const QkvSplit& split,
                  const RaggedBatch& batch, const KvLayer& kv, float* product, float* q,
                  Stream& stream) override;

 private:
  RowExchange* exchange_;
  std::int64_t most_ = 0;
};

}  // namespace zi
