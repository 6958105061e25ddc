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
#include "zero_infer/bytes.h"
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
    cuda_activate(x, DType::kFloat32, ld, activate, rows, cols, y, y_dtype, cuda_stream(stream));
  }

  void matmul_activate(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                       const Activate& activate, float* product, void* y, DType y_dtype,
                       Stream& stream) override {
    const auto output = activate_output(activate, y, w);
    if (output && (w.format() == y_dtype || (w.format().packed() && a_dtype == y_dtype)) &&
        matmul_.run_streamed(a, a_dtype, rows, w, *output, cuda_stream(stream))) {
      return;
    }
    if (a_dtype == y_dtype && activate_rounded(a, a_dtype, rows, w, activate, product, y, stream)) {
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
    // Keys and values are rounded once, as otherwise; queries are rounded before they are scaled,
    // too, which the range of float16 might not bear.
    if (a_dtype == DType::kBFloat16 && kv.dtype == a_dtype && w.size() == 1 &&
        is_interleaved(split, kv) &&
        matmul_.run_rounded(a, a_dtype, batch.tokens, w[0], split.q.bias, {},
                            behind_rounded(product, batch.tokens, w), product, w.padded_rows(),
                            cuda_stream(stream))) {
      cuda_split_rounded_qkv(product, w.padded_rows(), batch, kv, q, cuda_stream(stream));
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
  /// matmul_activate of many rows, whose sums are rounded to `type` on their way: without a gate
  /// after the activation, so that this is no loss. Gates of float16 keep their range.
  bool activate_rounded(const void* a, DType type, std::int64_t rows, const Matrices& w,
                        const Activate& activate, float* product, void* y, Stream& stream) {
    cudaStream_t const on = cuda_stream(stream);
    if (activate.up < 0) {
      return w.size() == 1 && w.padded_rows() == w[0].rows &&
             matmul_.run_rounded(a, type, rows, w[0], activate.bias, activate.activation, product,
                                 y, w[0].rows, on);
    }
    if (type != DType::kBFloat16) return false;
    for (std::size_t i = 0; i < w.size(); ++i) {
      if (!matmul_.run_rounded(a, type, rows, w[i], nullptr, {}, nullptr,
                               reinterpret_cast<std::uint16_t*>(product) + w.first(i),
                               w.padded_rows(), on)) {
        return false;
      }
    }
    cuda_activate(product, type, w.padded_rows(), activate, rows, w[0].rows, y, type, on);
    return true;
  }

  /// Where a product's scratch memory is free behind its sums in 16 bits.
  static void* behind_rounded(float* product, std::int64_t rows, const Matrices& w) {
    return product + ceil_div(rows * w.padded_rows(), std::int64_t{128}) * 64;
  }

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
