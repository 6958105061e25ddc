#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "zero_infer/ops.h"

namespace zi {

/// Ops that also time every operation by a pair of events on its stream. `times` waits for the
/// device. The events cost about a microsecond each.
class TimingOps final : public Ops {
 public:
  struct Time {
    double seconds = 0;
    std::int64_t count = 0;
  };

  TimingOps(Device& device, std::unique_ptr<Ops> inner)
      : device_(&device), inner_(std::move(inner)) {}

  /// Forgets what was timed so far; from now on, while `on`, operations are timed.
  void start(bool on) {
    on_ = on;
    used_ = 0;
    names_.clear();
  }
  /// By operation; products by their shape.
  std::map<std::string, Time> times() const {
    std::map<std::string, Time> out;
    for (std::size_t i = 0; i < used_; ++i) {
      spans_[i].second->synchronize();
      Time& time = out[names_[i]];
      time.seconds += device_->elapsed_seconds(*spans_[i].first, *spans_[i].second);
      ++time.count;
    }
    return out;
  }

  void layer_norm(const float* x, const float* gamma, const float* beta, float epsilon,
                  std::int64_t rows, std::int64_t cols, void* y, DType y_dtype,
                  Stream& stream) override {
    timed("layer_norm", stream,
          [&] { inner_->layer_norm(x, gamma, beta, epsilon, rows, cols, y, y_dtype, stream); });
  }
  void matmul(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w, float* y,
              Stream& stream) override {
    timed(product_name("matmul", rows, w), stream,
          [&] { inner_->matmul(a, a_dtype, rows, w, y, stream); });
  }
  void matmul_gelu(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w,
                   const float* bias, float* product, void* y, DType y_dtype,
                   Stream& stream) override {
    timed(product_name("matmul_gelu", rows, w), stream,
          [&] { inner_->matmul_gelu(a, a_dtype, rows, w, bias, product, y, y_dtype, stream); });
  }
  void matmul_qkv(const void* a, DType a_dtype, const RowBlockMatrix& w, const float* bias,
                  const RaggedBatch& batch, const KvLayer& kv, float* product, float* q,
                  Stream& stream) override {
    timed(product_name("matmul_qkv", batch.tokens, w), stream,
          [&] { inner_->matmul_qkv(a, a_dtype, w, bias, batch, kv, product, q, stream); });
  }
  void bias_gelu(const float* x, std::int64_t ld, const float* bias, std::int64_t rows,
                 std::int64_t cols, void* y, DType y_dtype, Stream& stream) override {
    timed("bias_gelu", stream,
          [&] { inner_->bias_gelu(x, ld, bias, rows, cols, y, y_dtype, stream); });
  }
  void bias_residual_norm(const float* x, std::int64_t ld, const float* bias, float* residual,
                          const float* gamma, const float* beta, float epsilon, std::int64_t rows,
                          std::int64_t cols, void* y, DType y_dtype, Stream& stream) override {
    timed("bias_residual_norm", stream, [&] {
      inner_->bias_residual_norm(x, ld, bias, residual, gamma, beta, epsilon, rows, cols, y,
                                 y_dtype, stream);
    });
  }
  void bias_residual(const float* x, std::int64_t ld, const float* bias, std::int64_t rows,
                     std::int64_t cols, float* residual, Stream& stream) override {
    timed("bias_residual", stream,
          [&] { inner_->bias_residual(x, ld, bias, rows, cols, residual, stream); });
  }
  void split_qkv(const float* qkv, std::int64_t ld, const float* bias, const RaggedBatch& batch,
                 const KvLayer& kv, float* q, Stream& stream) override {
    timed("split_qkv", stream, [&] { inner_->split_qkv(qkv, ld, bias, batch, kv, q, stream); });
  }
  void attention(const float* q, const RaggedBatch& batch, const KvLayer& kv, const float* slopes,
                 void* out, DType out_dtype, Stream& stream) override {
    timed("attention", stream,
          [&] { inner_->attention(q, batch, kv, slopes, out, out_dtype, stream); });
  }
  void gather_rows(const void* x, DType dtype, const std::int32_t* rows, std::int64_t count,
                   std::int64_t cols, float* out, Stream& stream) override {
    timed("gather_rows", stream,
          [&] { inner_->gather_rows(x, dtype, rows, count, cols, out, stream); });
  }
  void convert(const void* x, DType from, void* y, DType to, std::int64_t count,
               Stream& stream) override {
    timed("convert", stream, [&] { inner_->convert(x, from, y, to, count, stream); });
  }
  void fill_uniform(const UniformValues& values, std::int64_t first, std::int64_t count, void* y,
                    DType to, Stream& stream) override {
    timed("fill_uniform", stream,
          [&] { inner_->fill_uniform(values, first, count, y, to, stream); });
  }
  void interleave(const float* slices, int blocks, std::int64_t rows, std::int64_t slice,
                  float* logits, Stream& stream) override {
    timed("interleave", stream,
          [&] { inner_->interleave(slices, blocks, rows, slice, logits, stream); });
  }
  void sample(const float* logits, std::int64_t ld, std::int64_t vocabulary,
              std::span<const SampleRow> rows, const SampleResults& results,
              Stream& stream) override {
    timed("sample", stream, [&] { inner_->sample(logits, ld, vocabulary, rows, results, stream); });
  }

 private:
  static std::string product_name(const char* op, std::int64_t rows, const RowBlockMatrix& w) {
    return std::string(op) + " " + std::to_string(rows) + " x " + std::to_string(w.cols) + " x " +
           std::to_string(w.padded_rows());
  }

  template <typename Op>
  void timed(std::string name, Stream& stream, const Op& op) {
    if (!on_) return op();
    if (used_ == spans_.size()) {
      spans_.emplace_back(device_->make_event(), device_->make_event());
    }
    names_.push_back(std::move(name));
    stream.record(*spans_[used_].first);
    op();
    stream.record(*spans_[used_].second);
    ++used_;
  }

  Device* device_;
  std::unique_ptr<Ops> inner_;
  bool on_ = false;
  std::size_t used_ = 0;
  std::vector<std::pair<std::unique_ptr<Event>, std::unique_ptr<Event>>> spans_;
  std::vector<std::string> names_;
};

}  // namespace zi
