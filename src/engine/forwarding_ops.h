#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "zero_infer/ops.h"

namespace zi {

/// Ops that do what others do, in everything: to be changed in one respect, or watched.
class ForwardingOps : public Ops {
 public:
  explicit ForwardingOps(std::shared_ptr<Ops> inner) : inner_(std::move(inner)) {}

  bool recordable() const override { return inner_->recordable(); }
  void normalize(const float* x, const Norm& norm, std::int64_t rows, std::int64_t cols, void* y,
                 DType y_dtype, Stream& stream) override {
    forward({"normalize"}, stream,
            [&] { inner_->normalize(x, norm, rows, cols, y, y_dtype, stream); });
  }
  void matmul(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w, float* y,
              Stream& stream) override {
    forward({"matmul", rows, &w}, stream, [&] { inner_->matmul(a, a_dtype, rows, w, y, stream); });
  }
  void matmul_activate(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                       const Activate& activate, float* product, void* y, DType y_dtype,
                       Stream& stream) override {
    forward({"matmul_activate", rows, &w}, stream, [&] {
      inner_->matmul_activate(a, a_dtype, rows, w, activate, product, y, y_dtype, stream);
    });
  }
  void matmul_qkv(const void* a, DType a_dtype, const Matrices& w, const QkvSplit& split,
                  const RaggedBatch& batch, const KvLayer& kv, float* product, float* q,
                  Stream& stream) override {
    forward({"matmul_qkv", batch.tokens, &w}, stream,
            [&] { inner_->matmul_qkv(a, a_dtype, w, split, batch, kv, product, q, stream); });
  }
  void activate(const float* x, std::int64_t ld, const Activate& activate, std::int64_t rows,
                std::int64_t cols, void* y, DType y_dtype, Stream& stream) override {
    forward({"activate"}, stream,
            [&] { inner_->activate(x, ld, activate, rows, cols, y, y_dtype, stream); });
  }
  void bias_residual(const float* x, std::int64_t ld, const float* bias, std::int64_t rows,
                     std::int64_t cols, float* residual, Stream& stream) override {
    forward({"bias_residual"}, stream,
            [&] { inner_->bias_residual(x, ld, bias, rows, cols, residual, stream); });
  }
  void bias_residual_norm(const float* x, std::int64_t ld, const float* bias, float* residual,
                          const Norm& norm, std::int64_t rows, std::int64_t cols, void* y,
                          DType y_dtype, Stream& stream) override {
    forward({"bias_residual_norm"}, stream, [&] {
      inner_->bias_residual_norm(x, ld, bias, residual, norm, rows, cols, y, y_dtype, stream);
    });
  }
  void add_positions(const float* table, std::int64_t first, const RaggedBatch& batch,
                     std::int64_t cols, float* x, Stream& stream) override {
    forward({"add_positions"}, stream,
            [&] { inner_->add_positions(table, first, batch, cols, x, stream); });
  }
  void rotations(const float* frequencies, int pairs, float scale, const RaggedBatch& batch,
                 float* out, Stream& stream) override {
    forward({"rotations"}, stream,
            [&] { inner_->rotations(frequencies, pairs, scale, batch, out, stream); });
  }
  void split_qkv(const float* qkv, std::int64_t ld, const QkvSplit& split, const RaggedBatch& batch,
                 const KvLayer& kv, float* q, Stream& stream) override {
    forward({"split_qkv"}, stream,
            [&] { inner_->split_qkv(qkv, ld, split, batch, kv, q, stream); });
  }
  void attention(const float* q, int heads, const RaggedBatch& batch, const KvLayer& kv,
                 const float* slopes, void* out, DType out_dtype, Stream& stream) override {
    forward({"attention"}, stream,
            [&] { inner_->attention(q, heads, batch, kv, slopes, out, out_dtype, stream); });
  }
  void gather_rows(const void* x, const WeightFormat& format, const std::int32_t* rows,
                   std::int64_t count, std::int64_t cols, float* out, Stream& stream) override {
    forward({"gather_rows"}, stream,
            [&] { inner_->gather_rows(x, format, rows, count, cols, out, stream); });
  }
  void convert(const void* x, DType from, void* y, DType to, std::int64_t count,
               Stream& stream) override {
    forward({"convert"}, stream, [&] { inner_->convert(x, from, y, to, count, stream); });
  }
  void fill_uniform(const UniformValues& values, std::int64_t first, std::int64_t count, void* y,
                    DType to, Stream& stream) override {
    forward({"fill_uniform"}, stream,
            [&] { inner_->fill_uniform(values, first, count, y, to, stream); });
  }
  void fill_uniform_rows(const UniformValues& values, std::int64_t first, std::int64_t rows,
                         std::int64_t cols, const WeightFormat& format, std::byte* y,
                         Stream& stream) override {
    forward({"fill_uniform_rows"}, stream,
            [&] { inner_->fill_uniform_rows(values, first, rows, cols, format, y, stream); });
  }
  void interleave(const void* parts, DType type, int blocks, std::int64_t rows,
                  std::span<const std::int64_t> slices, void* y, Stream& stream) override {
    forward({"interleave"}, stream,
            [&] { inner_->interleave(parts, type, blocks, rows, slices, y, stream); });
  }
  void put_columns(std::span<const ColumnRun> runs, std::int64_t rows, float* y, std::int64_t ld,
                   Stream& stream) override {
    forward({"put_columns"}, stream, [&] { inner_->put_columns(runs, rows, y, ld, stream); });
  }
  void sample(const float* logits, std::int64_t ld, std::int64_t vocabulary,
              std::span<const SampleRow> rows, const SampleResults& results,
              Stream& stream) override {
    forward({"sample"}, stream,
            [&] { inner_->sample(logits, ld, vocabulary, rows, results, stream); });
  }

 protected:
  /// An operation by its name in Ops; of a product also its rows and its weights.
  struct Call {
    const char* op;
    std::int64_t rows = 0;
    const Matrices* weights = nullptr;
  };
  /// Called before and after each operation is enqueued.
  virtual void before(const Call&, Stream&) {}
  virtual void after(Stream&) {}

 private:
  template <typename Op>
  void forward(const Call& call, Stream& stream, const Op& op) {
    before(call, stream);
    op();
    after(stream);
  }

  std::shared_ptr<Ops> inner_;
};

}  // namespace zi
