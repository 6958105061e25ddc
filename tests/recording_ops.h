#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "zero_infer/ops.h"

namespace zi::test {

/// Ops that also keep the logits of every drawn token, by (prompt index, position).
class RecordingOps final : public Ops {
 public:
  using Key = std::pair<std::uint64_t, std::uint64_t>;
  using Record = std::map<Key, std::vector<float>>;

  RecordingOps(Device& device, std::unique_ptr<Ops> inner, Record* record)
      : device_(&device), inner_(std::move(inner)), record_(record) {}

  bool recordable() const override { return inner_->recordable(); }
  void layer_norm(const float* x, const float* gamma, const float* beta, float epsilon,
                  std::int64_t rows, std::int64_t cols, void* y, DType y_dtype,
                  Stream& stream) override {
    inner_->layer_norm(x, gamma, beta, epsilon, rows, cols, y, y_dtype, stream);
  }
  void matmul(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w, float* y,
              Stream& stream) override {
    inner_->matmul(a, a_dtype, rows, w, y, stream);
  }
  void matmul_gelu(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w,
                   const float* bias, float* product, void* y, DType y_dtype,
                   Stream& stream) override {
    inner_->matmul_gelu(a, a_dtype, rows, w, bias, product, y, y_dtype, stream);
  }
  void matmul_qkv(const void* a, DType a_dtype, const RowBlockMatrix& w, const float* bias,
                  const RaggedBatch& batch, const KvLayer& kv, float* product, float* q,
                  Stream& stream) override {
    inner_->matmul_qkv(a, a_dtype, w, bias, batch, kv, product, q, stream);
  }
  void bias_gelu(const float* x, std::int64_t ld, const float* bias, std::int64_t rows,
                 std::int64_t cols, void* y, DType y_dtype, Stream& stream) override {
    inner_->bias_gelu(x, ld, bias, rows, cols, y, y_dtype, stream);
  }
  void bias_residual(const float* x, std::int64_t ld, const float* bias, std::int64_t rows,
                     std::int64_t cols, float* residual, Stream& stream) override {
    inner_->bias_residual(x, ld, bias, rows, cols, residual, stream);
  }
  void bias_residual_norm(const float* x, std::int64_t ld, const float* bias, float* residual,
                          const float* gamma, const float* beta, float epsilon, std::int64_t rows,
                          std::int64_t cols, void* y, DType y_dtype, Stream& stream) override {
    inner_->bias_residual_norm(x, ld, bias, residual, gamma, beta, epsilon, rows, cols, y, y_dtype,
                               stream);
  }
  void split_qkv(const float* qkv, std::int64_t ld, const float* bias, const RaggedBatch& batch,
                 const KvLayer& kv, float* q, Stream& stream) override {
    inner_->split_qkv(qkv, ld, bias, batch, kv, q, stream);
  }
  void attention(const float* q, const RaggedBatch& batch, const KvLayer& kv, const float* slopes,
                 void* out, DType out_dtype, Stream& stream) override {
    inner_->attention(q, batch, kv, slopes, out, out_dtype, stream);
  }
  void gather_rows(const void* x, DType dtype, const std::int32_t* rows, std::int64_t count,
                   std::int64_t cols, float* out, Stream& stream) override {
    inner_->gather_rows(x, dtype, rows, count, cols, out, stream);
  }
  void convert(const void* x, DType from, void* y, DType to, std::int64_t count,
               Stream& stream) override {
    inner_->convert(x, from, y, to, count, stream);
  }
  void fill_uniform(const UniformValues& values, std::int64_t first, std::int64_t count, void* y,
                    DType to, Stream& stream) override {
    inner_->fill_uniform(values, first, count, y, to, stream);
  }
  void interleave(const float* slices, int blocks, std::int64_t rows, std::int64_t slice,
                  float* logits, Stream& stream) override {
    inner_->interleave(slices, blocks, rows, slice, logits, stream);
  }
  void sample(const float* logits, std::int64_t ld, std::int64_t vocabulary,
              std::span<const SampleRow> rows, const SampleResults& results,
              Stream& stream) override {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      std::vector<float>& row = (*record_)[{rows[r].sequence, rows[r].position}];
      row.resize(static_cast<std::size_t>(vocabulary));
      device_->copy(row.data(), logits + static_cast<std::int64_t>(r) * ld,
                    row.size() * sizeof(float), stream);
    }
    stream.synchronize();
    inner_->sample(logits, ld, vocabulary, rows, results, stream);
  }

 private:
  Device* device_;
  std::unique_ptr<Ops> inner_;
  Record* record_;
};

}  // namespace zi::test
