#include "backend/cpu/products/cpu_products.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "packing/pack_rows.h"
#include "packing/unpack_rows.h"
#include "reference_ops.h"
#include "sanitized.h"
#include "zero_infer/bytes.h"

/// The CPU's own products with each set of instructions that this machine has.
namespace zi {
namespace {

using Kind = WeightFormat::Kind;

constexpr WeightFormat kPackedFormats[] = {kInt8Weights,
                                           kInt4Weights,
                                           {Kind::kInt4, ScaleType::kFloat16, 128, true},
                                           {Kind::kInt4, ScaleType::kFloat16, 32},
                                           {Kind::kInt8, ScaleType::kBFloat16, 0},
                                           {Kind::kInt8, ScaleType::kFloat16, 64, true},
                                           {Kind::kFloat8, ScaleType::kFloat32, 128}};

/// A type of activations, and weights that they are multiplied with.
struct Operands {
  DType type;
  WeightFormat weights;
};

std::vector<Operands> all_operands() {
  std::vector<Operands> all;
  for (const DType type : {DType::kBFloat16, DType::kFloat16}) {
    all.push_back({type, type});
    for (const WeightFormat& format : kPackedFormats) all.push_back({type, format});
  }
  return all;
}

std::string describe(const Operands& o) {
  return fmt::format("{} with {}", name_of(o.type), name_of(o.weights));
}

/// Bytes that end where memory ends: the next page cannot be read.
class BytesAtTheEnd {
 public:
  explicit BytesAtTheEnd(std::span<const std::byte> bytes)
      : mapped_(align_up(bytes.size() + 1, kPageBytes) + kPageBytes) {
    map_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(map_, MAP_FAILED);
    std::byte* const end = static_cast<std::byte*>(map_) + mapped_ - kPageBytes;
    EXPECT_EQ(mprotect(end, kPageBytes, PROT_NONE), 0);
    data_ = end - bytes.size();
    std::copy(bytes.begin(), bytes.end(), data_);
  }
  ~BytesAtTheEnd() { munmap(map_, mapped_); }
  BytesAtTheEnd(const BytesAtTheEnd&) = delete;
  BytesAtTheEnd& operator=(const BytesAtTheEnd&) = delete;
  std::byte* data() const { return data_; }

 private:
  std::size_t mapped_;
  void* map_;
  std::byte* data_;
};

class CpuProductsTest : public testing::TestWithParam<InstructionSet> {
 protected:
  void SetUp() override {
    if (GetParam() > instruction_set()) GTEST_SKIP() << "not on this machine";
  }

  std::vector<float> floats(std::int64_t count) {
    std::normal_distribution<float> bell(0, 0.1f);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = bell(random_);
    return values;
  }
  std::vector<std::byte> as(DType type, const std::vector<float>& values) {
    std::vector<std::byte> bytes(values.size() * 2);
    convert(values.data(), DType::kFloat32, bytes.data(), type, values.size());
    return bytes;
  }
  std::vector<std::byte> weights(std::int64_t rows, std::int64_t cols, const WeightFormat& format) {
    const auto values = floats(rows * cols);
    if (!format.packed()) return as(format.dtype, values);
    std::vector<std::byte> packed(static_cast<std::size_t>(rows) * format.row_bytes(cols));
    EXPECT_EQ(pack_rows(values.data(), rows, cols, format, packed.data()), rows);
    return packed;
  }
  static RowBlockMatrix matrix(const std::byte* data, std::int64_t rows, std::int64_t cols,
                               const WeightFormat& format) {
    return {data,  rows, cols, 1, rows, static_cast<std::size_t>(rows) * format.row_bytes(cols),
            format};
  }

  /// y (rows, w.padded_rows()), from a product whose output has columns and rows around it that
  /// must stay as they are.
  std::vector<float> multiply(CpuProducts& products, const std::byte* a, DType type,
                              std::int64_t rows, const RowBlockMatrix& w) {
    constexpr float kGuard = 12345;
    const std::int64_t width = w.padded_rows(), ld = width + 5;
    std::vector<float> y(static_cast<std::size_t>((rows + 2) * ld), kGuard);
    products.run(a, type, rows, w, y.data() + ld, ld);
    std::vector<float> out;
    for (std::int64_t row = 0; row < rows + 2; ++row) {
      for (std::int64_t i = 0; i < ld; ++i) {
        const float value = y[static_cast<std::size_t>(row * ld + i)];
        if (row >= 1 && row <= rows && i < width) {
          out.push_back(value);
        } else if (value != kGuard) {
          ADD_FAILURE() << "written beside the output: row " << row - 1 << ", column " << i;
          return out;
        }
      }
    }
    return out;
  }
  std::vector<float> multiply(const std::byte* a, DType type, std::int64_t rows,
                              const RowBlockMatrix& w) {
    return multiply(products(), a, type, rows, w);
  }
  CpuProducts& products() {
    if (!products_) products_.emplace(pool_, GetParam());
    return *products_;
  }

  ThreadPool pool_{2};
  std::optional<CpuProducts> products_;
  std::mt19937 random_{7};
};

std::size_t bytes_of(const std::vector<float>& values) { return values.size() * sizeof(float); }

TEST_P(CpuProductsTest, OfOddShapesMatchTheReferenceAndReadNothingBeyondTheirOperands) {
  for (const auto& [type, format] : all_operands()) {
    for (const std::int64_t cols : {1, 15, 32, 33, 64, 128, 160, 427, 1056}) {
      for (const std::int64_t outputs : {1, 3, 16, 33, 50}) {
        const auto w_bytes = weights(outputs, cols, format);
        const BytesAtTheEnd w_data(w_bytes);
        const RowBlockMatrix w = matrix(w_data.data(), outputs, cols, format);
        for (const std::int64_t rows : {1, 5, 16, 17, 40}) {
          SCOPED_TRACE(
              fmt::format("{}: ({}, {}) x {} rows", describe({type, format}), outputs, cols, rows));
          const auto a = as(type, floats(rows * cols));
          const BytesAtTheEnd a_data(a);
          const auto got = multiply(a_data.data(), type, rows, w);
          std::vector<double> magnitudes;
          const auto want = test::matmul(a.data(), type, rows, w, magnitudes, type);
          ASSERT_EQ(got.size(), want.size());
          for (std::size_t i = 0; i < got.size(); ++i) {
            // As in ops_matmul_test: float32 sums of exact products.
            const double bound =
                (8 + std::sqrt(static_cast<double>(cols))) * std::ldexp(1.0, -24) * magnitudes[i];
            ASSERT_NEAR(got[i], want[i], bound) << "element " << i;
          }
        }
      }
    }
  }
}

TEST_P(CpuProductsTest, HaveTheSameBitsForAnyNumberOfRowsAnyCutAndAnyThreads) {
  constexpr std::int64_t kRows = 70, kOutputs = 120;
  ThreadPool one(1), three(3);
  CpuProducts alone(one, GetParam()), with_three(three, GetParam());
  for (const auto& [type, format] : all_operands()) {
    for (const std::int64_t cols : {33, 576, 1100}) {
      SCOPED_TRACE(fmt::format("{}, {} columns", describe({type, format}), cols));
      const auto w_bytes = weights(kOutputs, cols, format);
      const RowBlockMatrix w = matrix(w_bytes.data(), kOutputs, cols, format);
      const auto a = as(type, floats(kRows * cols));
      const auto all = multiply(a.data(), type, kRows, w);
      EXPECT_EQ(multiply(alone, a.data(), type, kRows, w), all) << "one thread";
      EXPECT_EQ(multiply(with_three, a.data(), type, kRows, w), all) << "three threads";
      for (const std::int64_t count : {1, 2, 3, 7, 16, 17, 33, 69}) {
        for (const std::int64_t first : {std::int64_t{0}, kRows - count}) {
          const auto got = multiply(a.data() + first * cols * 2, type, count, w);
          ASSERT_EQ(std::memcmp(got.data(), all.data() + first * kOutputs, bytes_of(got)), 0)
              << count << " rows from " << first;
        }
      }
      for (const int blocks : {2, 3, 8, 24, 120}) {
        RowBlockMatrix cut = w;
        cut.blocks = blocks;
        cut.rows_per_block = kOutputs / blocks;
        cut.block_stride_bytes = static_cast<std::size_t>(cut.rows_per_block) * w.row_bytes();
        EXPECT_EQ(multiply(a.data(), type, kRows, cut), all) << blocks << " blocks";
        EXPECT_EQ(multiply(a.data(), type, 1, cut),
                  std::vector<float>(all.begin(), all.begin() + kOutputs))
            << blocks << " blocks, one row";
      }
    }
  }
}

TEST_P(CpuProductsTest, OfPackedWeightsAreThoseOfTheirValuesBitForBit) {
  constexpr std::int64_t kMostRows = 35;
  for (const auto& [type, format] : all_operands()) {
    if (!format.packed()) continue;
    for (const std::int64_t cols : {1, 48, 192, 427, 1024, 4096}) {
      SCOPED_TRACE(fmt::format("{}, {} columns", describe({type, format}), cols));
      // Jobs of several groups of tiles, or of one.
      const std::int64_t outputs = cols == 1024 ? 630 : 86;
      auto packed = weights(outputs, cols, format);
      if (format.kind == Kind::kFloat8) {
        // In a tile of ordinary rows, one of zeros and of 2^-6 under a scale near the largest.
        std::byte* const row = packed.data() + 7 * format.row_bytes(cols);
        for (std::int64_t i = 0; i < cols; ++i) row[i] = i % 2 == 0 ? std::byte{0} : std::byte{8};
        const float huge = type == DType::kFloat16 ? 0x1p21f : 0x1p121f;  // values 2^15 or 2^115
        std::memcpy(row + format.scales_at(cols), &huge, sizeof huge);
      }
      std::vector<std::byte> values(static_cast<std::size_t>(outputs * cols) * 2);
      unpack_rows(packed.data(), outputs, cols, format, type, values.data());
      const auto a = as(type, floats(kMostRows * cols));
      for (const std::int64_t rows : {1, 2, 3, 5, 6, 16, 35}) {
        const auto got =
            multiply(a.data(), type, rows, matrix(packed.data(), outputs, cols, format));
        const auto want =
            multiply(a.data(), type, rows, matrix(values.data(), outputs, cols, type));
        EXPECT_EQ(std::memcmp(got.data(), want.data(), bytes_of(want)), 0) << rows << " rows";
      }
    }
  }
}

TEST_P(CpuProductsTest, OfMoreActivationsThanArePackedAtOnceAreTheirRowsProducts) {
  // 32 MiB of packed activations are a group: here at most 4096 rows of 4096 columns.
  constexpr std::int64_t kRows = 4200, kCols = 4096, kOutputs = 4;
  for (const DType type : {DType::kBFloat16, DType::kFloat16}) {
    const auto w_bytes = weights(kOutputs, kCols, type);
    const RowBlockMatrix w = matrix(w_bytes.data(), kOutputs, kCols, type);
    const auto few = as(type, floats(10 * kCols));
    std::vector<std::byte> a;
    for (std::int64_t row = 0; row < kRows; row += 10) a.insert(a.end(), few.begin(), few.end());
    const auto want = multiply(few.data(), type, 10, w);
    const auto got = multiply(a.data(), type, kRows, w);
    for (std::size_t at = 0; at < got.size(); at += want.size()) {
      ASSERT_EQ(std::memcmp(got.data() + at, want.data(), bytes_of(want)), 0) << "from " << at;
    }
  }
}

TEST_P(CpuProductsTest, OfPackedRowsAreTheSameInEachBlockOfActivations) {
  // Caches keep some tens of rows of so many columns: the others meet weights that are read again.
  constexpr std::int64_t kRows = test::kSanitized ? 150 : 300;
  constexpr std::int64_t kCols = 4096, kOutputs = test::kSanitized ? 12 : 36;
  for (const auto& [type, format] : all_operands()) {
    SCOPED_TRACE(describe({type, format}));
    const auto w_bytes = weights(kOutputs, kCols, format);
    const RowBlockMatrix w = matrix(w_bytes.data(), kOutputs, kCols, format);
    const auto a = as(type, floats(kRows * kCols));
    const auto all = multiply(a.data(), type, kRows, w);
    for (const std::int64_t row : {std::int64_t{0}, std::int64_t{31}, std::int64_t{32},
                                   std::int64_t{127}, std::int64_t{128}, kRows - 1}) {
      const auto one = multiply(a.data() + row * kCols * 2, type, 1, w);
      EXPECT_EQ(std::memcmp(one.data(), all.data() + row * kOutputs, bytes_of(one)), 0) << row;
    }
  }
}

TEST_P(CpuProductsTest, OfFloat16TakeEveryValueAsItIs) {
  // A matrix of all float16s, subnormal ones, infinities and NaNs among them: a row of activations
  // that has a single 1 picks a column, and so do a large and a small factor.
  constexpr std::int64_t kOutputs = 2048, kCols = 32;
  std::vector<std::uint16_t> values(kOutputs * kCols);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint16_t>(i);
  for (std::uint16_t& v : values) {  // in a column of their own: a 0 would make NaN of them
    if ((v & 0x7c00u) == 0x7c00u && v % kCols != 5) v = 0;
  }
  const auto* const w_data = reinterpret_cast<const std::byte*>(values.data());
  const RowBlockMatrix w = matrix(w_data, kOutputs, kCols, DType::kFloat16);
  for (const float factor : {1.0f, 65504.0f, 0x1p-24f}) {
    for (const std::int64_t rows : {kCols, kCols - 1, std::int64_t{1}}) {
      std::vector<float> picks(static_cast<std::size_t>(rows * kCols), 0);
      for (std::int64_t r = 0; r < rows; ++r) {
        picks[static_cast<std::size_t>(r * kCols + (r + 5) % kCols)] = factor;
      }
      const auto a = as(DType::kFloat16, picks);
      const auto got = multiply(a.data(), DType::kFloat16, rows, w);
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t i = 0; i < kOutputs; ++i) {
          const float value =
              float16_to_float(values[static_cast<std::size_t>(i * kCols + (r + 5) % kCols)]);
          const float other = float16_to_float(values[static_cast<std::size_t>(i * kCols + 5)]);
          const float product = got[static_cast<std::size_t>(r * kOutputs + i)];
          if (std::isnan(value) || (r > 0 && !std::isfinite(other))) {
            ASSERT_TRUE(std::isnan(product)) << "row " << r << ", output " << i;
          } else {
            ASSERT_EQ(product, value * factor) << "row " << r << ", output " << i;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sets, CpuProductsTest,
                         testing::Values(InstructionSet::kAvx2, InstructionSet::kAvx512,
                                         InstructionSet::kAvx512Bf16, InstructionSet::kAmx),
                         [](const auto& info) { return std::string(name_of(info.param)); });

/// Either sign, from 2^-7 to 1.
std::vector<std::uint16_t> ordinary_bits(std::size_t count, DType type, std::mt19937& random) {
  const std::uint32_t one = type == DType::kFloat16 ? 0x3c00 : 0x3f80;
  const std::uint32_t span = type == DType::kFloat16 ? 7 << 10 : 7 << 7;
  std::vector<std::uint16_t> bits(count);
  for (auto& v : bits) {
    v = static_cast<std::uint16_t>(one - random() % span + (random() % 2 << 15));
  }
  return bits;
}

/// The same product with some sets of instructions.
void expect_the_same_bits(DType type, std::initializer_list<InstructionSet> sets) {
  constexpr std::int64_t kRows = 25, kOutputs = 37, kCols = 459;
  std::mt19937 random(3);
  const auto a = ordinary_bits(kRows * kCols, type, random);
  const auto w = ordinary_bits(kOutputs * kCols, type, random);
  const RowBlockMatrix matrix{
      reinterpret_cast<const std::byte*>(w.data()), kOutputs, kCols, 1, kOutputs, 0, type};
  ThreadPool pool(1);
  std::vector<float> first;
  for (const InstructionSet set : sets) {
    if (set > instruction_set()) continue;
    CpuProducts products(pool, set);
    for (const std::int64_t rows : {kRows, std::int64_t{9}}) {
      std::vector<float> y(static_cast<std::size_t>(rows * kOutputs));
      products.run(a.data(), type, rows, matrix, y.data(), kOutputs);
      if (first.empty()) first = y;
      EXPECT_TRUE(std::equal(y.begin(), y.end(), first.begin()))
          << name_of(set) << ", " << rows << " rows";
    }
  }
}

TEST(CpuProducts, WithAvx512AreThoseWithAvx2BitForBit) {
  if (instruction_set() < InstructionSet::kAvx512) GTEST_SKIP() << "no AVX-512";
  expect_the_same_bits(DType::kBFloat16, {InstructionSet::kAvx2, InstructionSet::kAvx512});
}

TEST(CpuProducts, OfFloat16HaveTheSameBitsWithEverySet) {
  if (instruction_set() < InstructionSet::kAvx512) GTEST_SKIP() << "no AVX-512";
  expect_the_same_bits(DType::kFloat16, {InstructionSet::kAvx2, InstructionSet::kAvx512,
                                         InstructionSet::kAvx512Bf16, InstructionSet::kAmx});
}

}  // namespace
}  // namespace zi
