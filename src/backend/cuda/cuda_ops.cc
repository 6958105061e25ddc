#include "backend/cuda/column_kernels.h"
#include "backend/cuda/cuda_attention.h"
#include "backend/cuda/cuda_matmul.h"
#include "backend/cuda/cuda_positions.h"
#include "backend/cuda/cuda_sampler.h"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/packed_rows.h"
#include "backend/cuda/row_kernels.h"
#include "backend/host/attention_shape.h"
#include "backend/host/sample_rows.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// What cuBLAS recommends for Hopper.
constexpr std::size_t kCublasBytes = std::size_t{32} << 20;
/// Partial results of attention, converted pieces of float32 products, or changed logits of rows to
/// sample: one at a time.
constexpr std::size_t kScratchBytes = std::size_t{64} << 20;
static_assert(kScratchBytes >= kAttentionScratchBytes);
constexpr std::size_t kArrivalsBytes = kAttentionArrivals * sizeof(std::uint32_t);

class CudaOps final : public Ops {
 public:
  explicit CudaOps(Device& device)
      : memory_(device.allocate(kCublasBytes + kScratchBytes + kArrivalsBytes)),
        matmul_(memory_.span().first(kCublasBytes), scratch()),
        sampler_(device, scratch()) {
    const auto stream = device.make_stream("arrivals");
    device.zero(arrivals(), kArrivalsBytes, *stream);
    stream->synchronize();
  }

  bool recordable() const override { return true; }

  void normalize(const float* x, const Norm& norm, std::int64_t rows, std::int64_t cols, void* y,
                 DType y_dtype, Stream& stream) override {
    cuda_normalize(x, norm, rows, cols, y, y_dtype, cuda_stream(stream));
  }

  void matmul(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w, float* y,
              Stream& stream) override {
    matmul_.run(a, a_dtype, rows, w, y, cuda_stream(stream));
  }

  void activate(const float* x, std::int64_t ld, const Activate& activate, std::int64_t rows,
                std::int64_t cols, void* y, DType y_dtype, Stream& stream) override {
    cuda_activate(x, ld, activate, rows, cols, y, y_dtype, cuda_stream(stream));
  }

  void matmul_activate(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                       const Activate& activate, float* product, void* y, DType y_dtype,
                       Stream& stream) override {
    const auto output = activate_output(activate, y, w);
    if (output && (w.format() == y_dtype || (w.format().packed() && a_dtype == y_dtype)) &&
        matmul_.run_streamed(a, a_dtype, rows, w, *output, cuda_stream(stream))) {
      return;
    }
    Ops::matmul_activate(a, a_dtype, rows, w, activate, product, y, y_dtype, stream);
  }

  void bias_residual_norm(const float* x, std::int64_t ld, const float* bias, float* residual,
                          const Norm& norm, std::int64_t rows, std::int64_t cols, void* y,
                          DType y_dtype, Stream& stream) override {
    cuda_bias_residual_norm(x, ld, bias, residual, norm, rows, cols, y, y_dtype,
                            cuda_stream(stream));
  }

  void bias_residual(const float* x, std::int64_t ld, const float* bias, std::int64_t rows,
                     std::int64_t cols, float* residual, Stream& stream) override {
    cuda_bias_residual(x, ld, bias, rows, cols, residual, cuda_stream(stream));
  }

  void add_positions(const float* table, std::int64_t first, const RaggedBatch& batch,
                     std::int64_t cols, float* x, Stream& stream) override {
    cuda_add_positions(table, first, batch, cols, x, cuda_stream(stream));
  }

  void rotations(const float* frequencies, int pairs, float scale, const RaggedBatch& batch,
                 float* out, Stream& stream) override {
    cuda_rotations(frequencies, pairs, scale, batch, out, cuda_stream(stream));
  }

  void split_qkv(const float* qkv, std::int64_t ld, const QkvSplit& split, const RaggedBatch& batch,
                 const KvLayer& kv, float* q, Stream& stream) override {
    cuda_split_qkv(qkv, ld, split, batch, kv, q, cuda_stream(stream));
  }

  void matmul_qkv(const void* a, DType a_dtype, const Matrices& w, const QkvSplit& split,
                  const RaggedBatch& batch, const KvLayer& kv, float* product, float* q,
                  Stream& stream) override {
    const auto output = qkv_output(w, split, batch, kv, q);
    if (output && (w.format() == kv.dtype || (w.format().packed() && a_dtype == kv.dtype)) &&
        matmul_.run_streamed(a, a_dtype, batch.tokens, w, *output, cuda_stream(stream))) {
      return;
    }
    Ops::matmul_qkv(a, a_dtype, w, split, batch, kv, product, q, stream);
  }

  void attention(const float* q, int heads, const RaggedBatch& batch, const KvLayer& kv,
                 const float* slopes, void* out, DType out_dtype, Stream& stream) override {
    check_attention_shape(heads, kv);
    cuda_attention(q, heads, batch, kv, slopes, out, out_dtype, {scratch(), arrivals()},
                   cuda_stream(stream));
  }

  void gather_rows(const void* x, const WeightFormat& format, const std::int32_t* rows,
                   std::int64_t count, std::int64_t cols, float* out, Stream& stream) override {
    if (format.packed()) {
      cuda_gather_packed_rows(static_cast<const std::byte*>(x), format, rows, count, cols, out,
                              cuda_stream(stream));
    } else {
      cuda_gather_rows(x, format.dtype, rows, count, cols, out, cuda_stream(stream));
    }
  }

  void convert(const void* x, DType from, void* y, DType to, std::int64_t count,
               Stream& stream) override {
    cuda_convert(x, from, y, to, count, cuda_stream(stream));
  }

  void fill_uniform(const UniformValues& values, std::int64_t first, std::int64_t count, void* y,
                    DType to, Stream& stream) override {
    cuda_fill_uniform(values, first, count, y, to, cuda_stream(stream));
  }

  void fill_uniform_rows(const UniformValues& values, std::int64_t first, std::int64_t rows,
                         std::int64_t cols, const WeightFormat& format, std::byte* y,
                         Stream& stream) override {
    if (format.packed()) {
      cuda_fill_packed_rows(values, first, rows, cols, format, y, cuda_stream(stream));
    } else {
      fill_uniform(values, first * cols, rows * cols, y, format.dtype, stream);
    }
  }

  void interleave(const void* parts, DType type, int blocks, std::int64_t rows,
                  std::span<const std::int64_t> slices, void* y, Stream& stream) override {
    cuda_interleave(parts, type, blocks, rows, slices, y, cuda_stream(stream));
  }

  void put_columns(std::span<const ColumnRun> runs, std::int64_t rows, float* y, std::int64_t ld,
                   Stream& stream) override {
    cuda_put_columns(runs, rows, y, ld, cuda_stream(stream));
  }

  void sample(const float* logits, std::int64_t ld, std::int64_t vocabulary,
              std::span<const SampleRow> rows, const SampleResults& results,
              Stream& stream) override {
    check_sample_rows(rows, vocabulary, results);
    sampler_.sample(logits, ld, vocabulary, rows, results, stream);
  }

 private:
  std::span<std::byte> scratch() const {
    return memory_.span().subspan(kCublasBytes, kScratchBytes);
  }
  std::uint32_t* arrivals() const {
    return reinterpret_cast<std::uint32_t*>(memory_.data() + kCublasBytes + kScratchBytes);
  }

  Buffer memory_;
  CudaMatmul matmul_;
  CudaSampler sampler_;
};

}  // namespace

std::unique_ptr<Ops> make_cuda_ops(Device& device) { return std::make_unique<CudaOps>(device); }

}  // namespace zi
