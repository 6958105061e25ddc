#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "backend/cpu/cpu_attention.h"
#include "backend/cpu/cpu_matmul.h"
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/simd.h"
#include "backend/host/attention_shape.h"
#include "backend/host/sample_rows.h"
#include "backend/host/thread_pool.h"
#include "packing/pack_rows.h"
#include "packing/unpack_rows.h"
#include "zero_infer/backend.h"
#include "zero_infer/bytes.h"
#include "zero_infer/cpu_stream.h"
#include "zero_infer/error.h"
#include "zero_infer/logit_changes.h"
#include "zero_infer/sampler.h"

namespace zi {
namespace {

/// Fewer elements than this are faster on one thread.
constexpr std::int64_t kParallelElements = 16384;

std::byte* at(void* data, DType dtype, std::int64_t index) {
  return static_cast<std::byte*>(data) + static_cast<std::size_t>(index) * size_of(dtype);
}

/// Runs kernel(row, float_row) with float_row = y's row when y is float32, else a row to convert
/// from.
template <typename Kernel>
void for_rows_into(void* y, DType dtype, std::int64_t rows, std::int64_t cols, ThreadPool& pool,
                   Kernel kernel) {
  const auto do_row = [&](std::int64_t row, int) {
    std::byte* out = at(y, dtype, row * cols);
    if (dtype == DType::kFloat32) {
      kernel(row, reinterpret_cast<float*>(out));
      return;
    }
    thread_local std::vector<float> converted;  // keeps its memory from call to call
    converted.resize(std::max(converted.size(), static_cast<std::size_t>(cols)));
    kernel(row, converted.data());
    simd::from_float(converted.data(), out, dtype, static_cast<std::size_t>(cols));
  };
  pool.run(rows, do_row, rows * cols >= kParallelElements);
}

/// One object for all streams of a rank: kernels share scratch memory and the rank's threads, so
/// they run one after the other even when several streams enqueue them.
struct Kernels {
  explicit Kernels(int threads) : pool(threads), matmul(pool), attention(pool) {}
  std::mutex mutex;
  ThreadPool pool;
  CpuMatmul matmul;
  CpuAttention attention;
};

/// The sequence that owns a row of the batch, and the row's position in it.
struct RowPlace {
  RowPlace(const RaggedBatch& batch, std::int64_t row)
      : sequence(std::upper_bound(batch.row_begin, batch.row_begin + batch.sequences + 1, row) -
                 batch.row_begin - 1),
        position(batch.context[sequence] - batch.row_begin[sequence + 1] + row) {}
  std::int64_t sequence;
  std::int64_t position;
};

void write_qkv(const float* qkv, std::int64_t ld, const QkvSplit& split, const RaggedBatch& batch,
               const KvLayer& kv, float* q, ThreadPool& pool) {
  const std::int64_t head_dim = kv.head_dim;
  const auto elements = static_cast<std::size_t>(head_dim);
  const std::size_t width = elements * size_of(kv.dtype);
  const std::int64_t pairs = split.rotations == nullptr ? 0 : split.rotary / 2;
  const auto write_row = [&](std::int64_t row, int) {
    float sum[kMostHeadDim];
    const auto take = [&](const HeadColumns& columns, std::int64_t head, const float* norm,
                          bool rotated, float* out) {
      const float* bias = columns.bias == nullptr ? nullptr : columns.bias + head * columns.step;
      row::add(qkv + row * ld + columns.first + head * columns.step, bias, head_dim, out);
      if (norm != nullptr) {
        row::normalize(out, {norm, nullptr, split.norm_epsilon, false}, head_dim, out);
      }
      if (rotated && pairs > 0) {
        row::rotate(out, split.rotations + row * pairs * 2, pairs);
      }
    };
    const RowPlace place(batch, row);
    const std::int64_t page =
        batch.block_tables[place.sequence * batch.max_pages + place.position / kKvPageTokens];
    std::byte* keys = kv.data + static_cast<std::size_t>(page) * kv.page_bytes();
    std::byte* values = keys + kv.page_bytes() / 2;
    for (std::int64_t head = 0; head < split.heads; ++head) {
      take(split.q, head, split.q_norm, true, q + (row * split.heads + head) * head_dim);
    }
    for (std::int64_t head = 0; head < kv.heads; ++head) {
      const std::size_t slot =
          static_cast<std::size_t>(head * kKvPageTokens + place.position % kKvPageTokens) * width;
      take(split.k, head, split.k_norm, true, sum);
      simd::from_float(sum, keys + slot, kv.dtype, elements);
      take(split.v, head, nullptr, false, sum);
      simd::from_float(sum, values + slot, kv.dtype, elements);
    }
  };
  pool.run(batch.tokens, write_row,
           batch.tokens * (split.heads + 2 * kv.heads) * head_dim >= kParallelElements);
}

void make_rotations(const float* frequencies, std::int64_t pairs, float scale,
                    const RaggedBatch& batch, float* out) {
  for (std::int64_t row = 0; row < batch.tokens; ++row) {
    const auto position = static_cast<float>(RowPlace(batch, row).position);
    for (std::int64_t i = 0; i < pairs; ++i, out += 2) {
      const float angle = position * frequencies[i];
      out[0] = std::cos(angle) * scale;
      out[1] = std::sin(angle) * scale;
    }
  }
}

/// Rows with the histories and biases that they need: the caller's lists change while the stream
/// runs.
struct SampleRows {
  explicit SampleRows(std::span<const SampleRow> given) : rows(given.begin(), given.end()) {
    for (SampleRow& row : rows) {
      if (!changes_logits(row)) {
        row.bias = {};
        row.new_tokens = 0;
      }
      if (!penalises_repetition(row)) row.history = row.history.last(row.new_tokens);
      if (!row.history.empty()) {
        row.history = histories.emplace_back(row.history.begin(), row.history.end());
      }
      if (!row.bias.empty()) row.bias = biases.emplace_back(row.bias.begin(), row.bias.end());
    }
  }
  SampleRows(const SampleRows&) = delete;  // the rows' spans are into the lists below

  std::vector<SampleRow> rows;
  std::vector<std::vector<std::int32_t>> histories;
  std::vector<std::vector<LogitBias>> biases;
};

void sample_rows(const float* logits, std::int64_t ld, std::int64_t vocabulary,
                 const SampleRows& rows, const SampleResults& results, ThreadPool& pool) {
  const auto sample_one = [&](std::int64_t row, int) {
    const SampleRow& wanted = rows.rows[static_cast<std::size_t>(row)];
    std::span<std::int32_t> top_ids;
    std::span<float> top_logprobs;
    if (wanted.top > 0) {
      const auto top = static_cast<std::size_t>(wanted.top);
      top_ids = {results.top_ids + row * results.top, top};
      top_logprobs = {results.top_logprobs + row * results.top, top};
    }
    const Sampled sampled = sample_row({logits + row * ld, static_cast<std::size_t>(vocabulary)},
                                       wanted, top_ids, top_logprobs);
    results.ids[row] = sampled.id;
    results.logprobs[row] = sampled.logprob;
  };
  pool.run(static_cast<std::int64_t>(rows.rows.size()), sample_one);
}

class CpuOps final : public Ops {
 public:
  explicit CpuOps(int threads) : kernels_(std::make_shared<Kernels>(threads)) {}

  void normalize(const float* x, const Norm& norm, std::int64_t rows, std::int64_t cols, void* y,
                 DType y_dtype, Stream& stream) override {
    enqueue(stream, [=](Kernels& kernels) {
      for_rows_into(y, y_dtype, rows, cols, kernels.pool, [&](std::int64_t row, float* out) {
        row::normalize(x + row * cols, norm, cols, out);
      });
    });
  }

  void matmul(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w, float* y,
              Stream& stream) override {
    if (rows == 0) return;  // a may be null, and y
    enqueue(stream, [=](Kernels& kernels) {
      for (std::size_t i = 0; i < w.size(); ++i) {
        kernels.matmul.run(a, a_dtype, rows, w[i], y + w.first(i), w.padded_rows());
      }
    });
  }

  void activate(const float* x, std::int64_t ld, const Activate& activate, std::int64_t rows,
                std::int64_t cols, void* y, DType y_dtype, Stream& stream) override {
    enqueue(stream, [=](Kernels& kernels) {
      for_rows_into(y, y_dtype, rows, cols, kernels.pool, [&](std::int64_t row, float* out) {
        row::activate(x + row * ld, activate, cols, out);
      });
    });
  }

  void bias_residual(const float* x, std::int64_t ld, const float* bias, std::int64_t rows,
                     std::int64_t cols, float* residual, Stream& stream) override {
    enqueue(stream, [=](Kernels& kernels) {
      const auto add_row = [&](std::int64_t row, int) {
        row::bias_residual(x + row * ld, bias, cols, residual + row * cols);
      };
      kernels.pool.run(rows, add_row, rows * cols >= kParallelElements);
    });
  }

  void bias_residual_norm(const float* x, std::int64_t ld, const float* bias, float* residual,
                          const Norm& norm, std::int64_t rows, std::int64_t cols, void* y,
                          DType y_dtype, Stream& stream) override {
    enqueue(stream, [=](Kernels& kernels) {
      for_rows_into(y, y_dtype, rows, cols, kernels.pool, [&](std::int64_t row, float* out) {
        float* const sum = residual + row * cols;
        row::bias_residual(x + row * ld, bias, cols, sum);
        row::normalize(sum, norm, cols, out);
      });
    });
  }

  void add_positions(const float* table, std::int64_t first, const RaggedBatch& batch,
                     std::int64_t cols, float* x, Stream& stream) override {
    enqueue(stream, [=](Kernels& kernels) {
      const auto add_row = [&](std::int64_t row, int) {
        const std::int64_t position = RowPlace(batch, row).position;
        row::bias_residual(table + (first + position) * cols, nullptr, cols, x + row * cols);
      };
      kernels.pool.run(batch.tokens, add_row, batch.tokens * cols >= kParallelElements);
    });
  }

  void rotations(const float* frequencies, int pairs, float scale, const RaggedBatch& batch,
                 float* out, Stream& stream) override {
    enqueue(stream, [=](Kernels&) { make_rotations(frequencies, pairs, scale, batch, out); });
  }

  void split_qkv(const float* qkv, std::int64_t ld, const QkvSplit& split, const RaggedBatch& batch,
                 const KvLayer& kv, float* q, Stream& stream) override {
    enqueue(stream,
            [=](Kernels& kernels) { write_qkv(qkv, ld, split, batch, kv, q, kernels.pool); });
  }

  void attention(const float* q, int heads, const RaggedBatch& batch, const KvLayer& kv,
                 const float* slopes, void* out, DType out_dtype, Stream& stream) override {
    check_attention_shape(heads, kv);
    enqueue(stream, [=](Kernels& kernels) {
      kernels.attention.run(q, heads, batch, kv, slopes, out, out_dtype);
    });
  }

  void gather_rows(const void* x, const WeightFormat& format, const std::int32_t* rows,
                   std::int64_t count, std::int64_t cols, float* out, Stream& stream) override {
    enqueue(stream, [=](Kernels&) {
      const std::size_t row_bytes = format.row_bytes(cols);
      for (std::int64_t i = 0; i < count; ++i) {
        const std::byte* const row =
            static_cast<const std::byte*>(x) + static_cast<std::size_t>(rows[i]) * row_bytes;
        if (format.packed()) {
          unpack_rows(row, 1, cols, format, DType::kFloat32, out + i * cols);
        } else {
          zi::convert(row, format.dtype, out + i * cols, DType::kFloat32,
                      static_cast<std::size_t>(cols));
        }
      }
    });
  }

  void convert(const void* x, DType from, void* y, DType to, std::int64_t count,
               Stream& stream) override {
    enqueue(stream, [=](Kernels&) { convert_now(x, from, y, to, count); });
  }

  void fill_uniform(const UniformValues& values, std::int64_t first, std::int64_t count, void* y,
                    DType to, Stream& stream) override {
    enqueue(stream, [=](Kernels& kernels) {
      constexpr std::int64_t kPiece = std::int64_t{1} << 20;
      const auto fill_piece = [&](std::int64_t piece, int) {
        const std::int64_t begin = piece * kPiece;
        zi::fill_uniform(values, first + begin, std::min(kPiece, count - begin), at(y, to, begin),
                         to);
      };
      kernels.pool.run(ceil_div(count, kPiece), fill_piece);
    });
  }

  void fill_uniform_rows(const UniformValues& values, std::int64_t first, std::int64_t rows,
                         std::int64_t cols, const WeightFormat& format, std::byte* y,
                         Stream& stream) override {
    if (!format.packed()) {
      fill_uniform(values, first * cols, rows * cols, y, format.dtype, stream);
      return;
    }
    enqueue(stream, [=](Kernels& kernels) {
      const std::size_t row_bytes = format.row_bytes(cols);
      const auto fill_row = [&](std::int64_t row, int) {
        thread_local std::vector<float> made;  // keeps its memory from call to call
        made.resize(static_cast<std::size_t>(cols));
        zi::fill_uniform(values, (first + row) * cols, cols, made.data(), DType::kFloat32);
        pack_rows(made.data(), 1, cols, format, y + static_cast<std::size_t>(row) * row_bytes);
      };
      kernels.pool.run(rows, fill_row, rows * cols >= kParallelElements);
    });
  }

  void interleave(const void* parts, DType type, int blocks, std::int64_t rows,
                  std::span<const std::int64_t> slices, void* y, Stream& stream) override {
    std::array<std::size_t, Matrices::kMost> bytes{};
    std::size_t sum = 0;
    for (std::size_t i = 0; i < slices.size(); ++i) {
      sum += bytes.at(i) = static_cast<std::size_t>(slices[i]) * size_of(type);
    }
    enqueue(stream, [=](Kernels& kernels) {
      const auto copy_row = [&](std::int64_t row, int) {
        auto* to = static_cast<std::byte*>(y) + static_cast<std::size_t>(row * blocks) * sum;
        std::size_t first = 0;
        for (const std::size_t width : bytes) {
          for (std::int64_t block = 0; block < blocks; ++block) {
            const auto* const part = static_cast<const std::byte*>(parts) +
                                     static_cast<std::size_t>(block * rows + row) * sum;
            to = std::copy_n(part + first, width, to);
          }
          first += width;
        }
      };
      const auto elements = static_cast<std::int64_t>(sum / size_of(type)) * rows * blocks;
      kernels.pool.run(rows, copy_row, elements >= kParallelElements);
    });
  }

  void put_columns(std::span<const ColumnRun> runs, std::int64_t rows, float* y, std::int64_t ld,
                   Stream& stream) override {
    std::array<ColumnRun, kMostRuns> kept{};
    std::int64_t elements = 0;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      kept.at(i) = runs[i];
      elements += rows * runs[i].cols;
    }
    enqueue(stream, [=](Kernels& kernels) {
      const auto put_row = [&](std::int64_t row, int) {
        for (const ColumnRun& run : kept) {
          std::copy_n(run.x + row * run.ld, run.cols, y + row * ld + run.first);
        }
      };
      kernels.pool.run(rows, put_row, elements >= kParallelElements);
    });
  }

  void sample(const float* logits, std::int64_t ld, std::int64_t vocabulary,
              std::span<const SampleRow> rows, const SampleResults& results,
              Stream& stream) override {
    check_sample_rows(rows, vocabulary, results);
    auto owned = std::make_shared<const SampleRows>(rows);
    enqueue(stream, [=, owned = std::move(owned)](Kernels& kernels) {
      sample_rows(logits, ld, vocabulary, *owned, results, kernels.pool);
    });
  }

 private:
  static void convert_now(const void* x, DType from, void* y, DType to, std::int64_t count) {
    if (from == to) {
      if (x != y) std::memcpy(y, x, static_cast<std::size_t>(count) * size_of(from));
      return;
    }
    constexpr std::int64_t kPiece = 1024;
    float piece[kPiece];
    for (std::int64_t i = 0; i < count; i += kPiece) {
      const auto elements = static_cast<std::size_t>(std::min(kPiece, count - i));
      simd::to_float(at(const_cast<void*>(x), from, i), from, piece, elements);
      simd::from_float(piece, at(y, to, i), to, elements);
    }
  }

  template <typename Kernel>
  void enqueue(Stream& stream, Kernel kernel) {
    dynamic_cast<CpuStream&>(stream).enqueue([kernels = kernels_, kernel = std::move(kernel)] {
      const std::lock_guard lock(kernels->mutex);
      kernel(*kernels);
    });
  }

  std::shared_ptr<Kernels> kernels_;
};

}  // namespace

std::unique_ptr<Ops> make_cpu_ops(int threads) {
  if (threads < 1) throw ConfigError("the CPU backend needs at least one thread");
  return std::make_unique<CpuOps>(threads);
}

}  // namespace zi
