#include "reference_ops.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace zi::test {

std::vector<double> to_doubles(const void* data, DType dtype, std::int64_t count) {
  std::vector<double> out(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < out.size(); ++i) {
    switch (dtype) {
      case DType::kFloat32:
        out[i] = static_cast<const float*>(data)[i];
        break;
      case DType::kFloat16:
        out[i] = float16_to_float(static_cast<const std::uint16_t*>(data)[i]);
        break;
      case DType::kBFloat16:
        out[i] = bfloat16_to_float(static_cast<const std::uint16_t*>(data)[i]);
        break;
    }
  }
  return out;
}

std::vector<double> layer_norm(const float* x, const float* gamma, const float* beta,
                               double epsilon, std::int64_t rows, std::int64_t cols) {
  std::vector<double> y;
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * cols;
    double mean = 0;
    for (std::int64_t c = 0; c < cols; ++c) mean += row[c];
    mean /= static_cast<double>(cols);
    double variance = 0;
    for (std::int64_t c = 0; c < cols; ++c) variance += (row[c] - mean) * (row[c] - mean);
    variance /= static_cast<double>(cols);
    for (std::int64_t c = 0; c < cols; ++c) {
      y.push_back((row[c] - mean) / std::sqrt(variance + epsilon) * gamma[c] + beta[c]);
    }
  }
  return y;
}

namespace {

using Kind = WeightFormat::Kind;

/// Where the code of a column is in a packed row: its byte, and whether in its upper half.
std::pair<std::size_t, bool> code_at(Kind kind, std::int64_t column) {
  if (kind != Kind::kInt4) return {static_cast<std::size_t>(column), false};
  const std::int64_t in_block = column % 32;
  const auto block = static_cast<std::size_t>((column - in_block) / 2);
  const auto w = static_cast<std::size_t>(in_block / 8),
             e = static_cast<std::size_t>(in_block % 8 / 2),
             h = static_cast<std::size_t>(in_block % 2);
  return {block + 4 * w + (4 * e + 16 * h) / 8, e % 2 == 1};
}

/// Of float8: sign, 4 bits of exponent, 3 of mantissa.
double code_of_float8(unsigned bits) {
  const int exponent = static_cast<int>(bits >> 3 & 15u), mantissa = static_cast<int>(bits & 7u);
  const double size =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 7 - 3);
  return bits < 128 ? size : -size;
}

double scale_at(const std::byte* at, const WeightFormat& format) {
  if (format.scale == ScaleType::kFloat8) {
    const int b = std::to_integer<int>(*at);
    const double size =
        std::ldexp(1 + b % 8 / 8.0, b / 8 % 16 - 15) / (format.kind == Kind::kInt8 ? 16 : 1);
    return b < 128 ? size : -size;
  }
  const DType type = format.scale == ScaleType::kFloat32   ? DType::kFloat32
                     : format.scale == ScaleType::kFloat16 ? DType::kFloat16
                                                           : DType::kBFloat16;
  return to_doubles(at, type, 1).front();
}

}  // namespace

std::vector<double> row_values(const std::byte* row, const WeightFormat& format,
                               std::int64_t cols) {
  if (!format.packed()) return to_doubles(row, format.dtype, cols);
  std::vector<double> values;
  for (std::int64_t c = 0; c < cols; ++c) {
    const auto group = static_cast<std::size_t>(format.group == 0 ? 0 : c / format.group);
    const auto [byte, upper] = code_at(format.kind, c);
    const auto bits = std::to_integer<unsigned>(row[byte]);
    const double code = format.kind == Kind::kInt8     ? static_cast<std::int8_t>(bits)
                        : format.kind == Kind::kFloat8 ? code_of_float8(bits)
                                                       : (upper ? bits >> 4 : bits & 15u);
    double zero = format.kind == Kind::kInt4 ? 8 : 0;
    if (format.zeros) {
      const auto byte = std::to_integer<std::uint8_t>(row[format.zeros_at(cols) + group]);
      zero = format.kind == Kind::kInt4 ? byte / 8.0 : static_cast<std::int8_t>(byte);
    }
    const std::byte* const scale = row + format.scales_at(cols) + group * size_of(format.scale);
    values.push_back(static_cast<float>(scale_at(scale, format) * (code - zero)));
  }
  return values;
}

void set_code(std::byte* row, const WeightFormat& format, std::int64_t column, unsigned code) {
  const auto [byte, upper] = code_at(format.kind, column);
  if (format.kind != Kind::kInt4) {
    row[byte] = static_cast<std::byte>(code & 0xffu);
    return;
  }
  const unsigned shift = upper ? 4 : 0;
  const auto others = std::to_integer<unsigned>(row[byte]) & ~(15u << shift);
  row[byte] = static_cast<std::byte>(others | (code & 15u) << shift);
}

std::vector<double> matmul(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w,
                           std::vector<double>& magnitudes, DType rounded) {
  const std::vector<double> left = to_doubles(a, a_dtype, rows * w.cols);
  std::vector<double> y(static_cast<std::size_t>(rows * w.padded_rows()));
  magnitudes.assign(y.size(), 0);
  const auto cols = static_cast<std::size_t>(w.cols);
  for (std::int64_t out = 0; out < w.padded_rows(); ++out) {
    const std::byte* start =
        w.data + static_cast<std::size_t>(out / w.rows_per_block) * w.block_stride_bytes +
        static_cast<std::size_t>(out % w.rows_per_block) * w.row_bytes();
    std::vector<double> weights = row_values(start, w.format, w.cols);
    for (double& weight : weights) {
      const auto exact = static_cast<float>(weight);
      std::uint32_t stored = 0;
      convert(&exact, DType::kFloat32, &stored, rounded, 1);
      weight = to_doubles(&stored, rounded, 1).front();
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      double magnitude = 0;
      for (std::size_t c = 0; c < cols; ++c) {
        const double term = left[static_cast<std::size_t>(r) * cols + c] * weights[c];
        sum += term;
        magnitude += std::abs(term);
      }
      const auto index = static_cast<std::size_t>(r * w.padded_rows() + out);
      y[index] = sum;
      magnitudes[index] = magnitude;
    }
  }
  return y;
}

std::vector<double> bias_gelu(const float* x, std::int64_t ld, const float* bias, std::int64_t rows,
                              std::int64_t cols) {
  std::vector<double> y;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const double v = static_cast<double>(x[r * ld + c]) + bias[c];
      y.push_back(0.5 * v * (1 + std::tanh(0.79788456 * v * (1 + 0.044715 * v * v))));
    }
  }
  return y;
}

namespace {

std::vector<double> page_row(const RaggedBatch& batch, const KvLayer& kv, int sequence,
                             int position, int head, bool value) {
  const auto page = static_cast<std::size_t>(
      batch.block_tables[sequence * batch.max_pages + position / kKvPageTokens]);
  const std::size_t element = (static_cast<std::size_t>(head) * kKvPageTokens +
                               static_cast<std::size_t>(position % kKvPageTokens)) *
                              static_cast<std::size_t>(kv.head_dim);
  return to_doubles(kv.data + page * kv.page_bytes() + (value ? kv.page_bytes() / 2 : 0) +
                        element * size_of(kv.dtype),
                    kv.dtype, kv.head_dim);
}

}  // namespace

std::vector<double> attention(const float* q, int heads, const RaggedBatch& batch,
                              const KvLayer& kv, const float* slopes) {
  const auto head_dim = static_cast<std::size_t>(kv.head_dim);
  const std::size_t hidden = static_cast<std::size_t>(heads) * head_dim;
  std::vector<double> out(static_cast<std::size_t>(batch.tokens) * hidden);
  for (int s = 0; s < batch.sequences; ++s) {
    for (int row = batch.row_begin[s]; row < batch.row_begin[s + 1]; ++row) {
      const int position = batch.context[s] - batch.row_begin[s + 1] + row;
      for (int head = 0; head < heads; ++head) {
        const int kv_head = head / (heads / kv.heads);
        const std::size_t start =
            static_cast<std::size_t>(row) * hidden + static_cast<std::size_t>(head) * head_dim;
        std::vector<double> scores;
        for (int key = 0; key <= position; ++key) {
          const std::vector<double> k = page_row(batch, kv, s, key, kv_head, false);
          double score = 0;
          for (std::size_t d = 0; d < head_dim; ++d) score += q[start + d] * k[d];
          score /= std::sqrt(static_cast<double>(head_dim));
          if (slopes != nullptr) score += static_cast<double>(slopes[head]) * key;
          scores.push_back(score);
        }
        const double best = *std::max_element(scores.begin(), scores.end());
        double total = 0;
        for (double& score : scores) total += score = std::exp(score - best);
        for (int key = 0; key <= position; ++key) {
          const std::vector<double> v = page_row(batch, kv, s, key, kv_head, true);
          for (std::size_t d = 0; d < head_dim; ++d) {
            out[start + d] += scores[static_cast<std::size_t>(key)] / total * v[d];
          }
        }
      }
    }
  }
  return out;
}

}  // namespace zi::test
