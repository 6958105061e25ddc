#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "ops_inputs.h"

/// Everything that takes weights, with weights of fewer bits.
namespace zi {
namespace {

using Kind = WeightFormat::Kind;

constexpr WeightFormat kFormats[] = {kInt8Weights,
                                     kInt4Weights,
                                     {Kind::kInt4, ScaleType::kFloat16, 64, true},
                                     {Kind::kInt4, ScaleType::kFloat32, 32},
                                     {Kind::kInt4, ScaleType::kBFloat16, 128, true},
                                     {Kind::kInt8, ScaleType::kBFloat16, 0},
                                     {Kind::kInt8, ScaleType::kFloat16, 128, true},
                                     {Kind::kInt8, ScaleType::kFloat32, 32},
                                     {Kind::kInt4, ScaleType::kFloat16, 256, true},
                                     {Kind::kFloat8, ScaleType::kFloat32, 128},
                                     {Kind::kFloat8, ScaleType::kBFloat16, 0}};
constexpr int kGatheredRows[] = {5, 0, 5};

struct PackedTest : OpsInputsTest {
  std::vector<std::byte> multiply(const std::byte* a, DType dtype, std::int64_t rows,
                                  const Matrices& w) {
    return run(static_cast<std::size_t>(rows * w.padded_rows()) * 4, [&](std::byte* y) {
      ops->matmul(a, dtype, rows, w, reinterpret_cast<float*>(y), *stream);
    });
  }

  /// Products with the weights' values, each as it is or rounded to the inputs' type.
  struct Wanted {
    std::vector<double> exact, rounded, magnitudes;
  };
  static Wanted wanted(const std::vector<std::byte>& a, DType dtype, std::int64_t rows,
                       const TestMatrix& m) {
    Wanted want;
    want.exact = test::matmul(a.data(), dtype, rows, m.host, want.magnitudes);
    want.rounded = test::matmul(a.data(), dtype, rows, m.host, want.magnitudes, dtype);
    return want;
  }
  static void expect_products(const std::vector<std::byte>& bytes, const Wanted& want,
                              std::int64_t cols) {
    const auto* got = reinterpret_cast<const float*>(bytes.data());
    for (std::size_t i = 0; i < bytes.size() / sizeof(float); ++i) {
      // As for weights of 16 bits: the float32 sums are all that is not exact.
      const double tolerance =
          (8 + std::sqrt(static_cast<double>(cols))) * std::ldexp(1.0, -24) * want.magnitudes[i];
      const double error =
          std::min(std::abs(got[i] - want.exact[i]), std::abs(got[i] - want.rounded[i]));
      ASSERT_LE(error, tolerance) << "element " << i << " is " << got[i] << ", not "
                                  << want.exact[i];
    }
  }
};

TEST_P(PackedTest, ProductsMatchTheReferenceOfTheUnpackedValues) {
  constexpr std::int64_t kRows = 200;
  for (const WeightFormat& format : kFormats) {
    // Odd columns, and ones that no group divides; one row a block; blocks at a stride.
    for (const auto& [cols, block_rows, blocks] :
         {std::tuple{33, 5, 3}, {427, 65, 1}, {576, 35, 2}, {72, 9, 1}, {320, 1, 4}, {1, 1, 1}}) {
      const TestMatrix m = matrix(block_rows, blocks, cols, format);
      for (const DType dtype : {DType::kBFloat16, DType::kFloat32, DType::kFloat16}) {
        const auto host_a = as(floats(kRows * cols), dtype);
        const Buffer a = upload(host_a);
        const Wanted want = wanted(host_a, dtype, kRows, m);
        for (const std::int64_t rows : {1, 9, 17, 40, 70, 200}) {
          SCOPED_TRACE(fmt::format("{} x {}, {} rows, {} blocks of ({}, {})", name_of(dtype),
                                   name_of(format), rows, blocks, block_rows, cols));
          expect_products(multiply(a.data(), dtype, rows, m.device), want, cols);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(PackedTest, LongRowsAndFewOfThemMatchTheReference) {
  constexpr std::int64_t kRows = 33,
                         kCols = 4168;  // several steps of all kernels, and a part of one
  for (const WeightFormat& format : kFormats) {
    const TestMatrix m = matrix(37, 2, kCols, format);
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      const auto host_a = as(floats(kRows * kCols), dtype);
      const Buffer a = upload(host_a);
      const Wanted want = wanted(host_a, dtype, kRows, m);
      for (const std::int64_t rows : {1, 2, 3, 4, 5, 9, 17, 33}) {
        SCOPED_TRACE(fmt::format("{} x {}, {} rows", name_of(dtype), name_of(format), rows));
        expect_products(multiply(a.data(), dtype, rows, m.device), want, kCols);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(PackedTest, MoreTilesThanADeviceRunsBlocksAtOnceMatchTheReference) {
  if (GetParam().exact) GTEST_SKIP() << "this backend has no tiles, and sanitizers are slow";
  constexpr std::int64_t kRows = 64, kCols = 392;  // several steps, the last a part of one
  for (const WeightFormat& format :
       {kInt8Weights, kInt4Weights, WeightFormat(Kind::kInt4, ScaleType::kFloat16, 128, true),
        WeightFormat(Kind::kInt4, ScaleType::kFloat16, 32, true),
        WeightFormat(Kind::kInt8, ScaleType::kBFloat16, 0),
        WeightFormat(Kind::kFloat8, ScaleType::kFloat32, 128)}) {
    const TestMatrix m = matrix(36000, 1, kCols, format);
    const auto host_a = as(floats(kRows * kCols), DType::kBFloat16);
    const Buffer a = upload(host_a);
    const Wanted want = wanted(host_a, DType::kBFloat16, kRows, m);
    for (const std::int64_t rows : {1, 2, 8, 16, 32, 64}) {
      SCOPED_TRACE(fmt::format("{}, {} rows", name_of(format), rows));
      expect_products(multiply(a.data(), DType::kBFloat16, rows, m.device), want, kCols);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(PackedTest, RowsHaveTheSameBitsInEveryBatch) {
  if (!GetParam().exact) GTEST_SKIP() << "this backend promises equality within rounding only";
  constexpr std::int64_t kRows = 70;
  for (const WeightFormat& format : kFormats) {
    for (const auto& [cols, block_rows, blocks] :
         {std::tuple{33, 7, 2}, {427, 65, 1}, {576, 35, 2}, {1280, 75, 1}}) {
      const TestMatrix m = matrix(block_rows, blocks, cols, format);
      for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
        SCOPED_TRACE(fmt::format("{} x {}, {} blocks of ({}, {})", name_of(dtype), name_of(format),
                                 blocks, block_rows, cols));
        const std::size_t a_row = static_cast<std::size_t>(cols) * size_of(dtype);
        const Buffer a = upload(as(floats(kRows * cols), dtype));
        const std::size_t y_row = static_cast<std::size_t>(m.device.padded_rows()) * 4;
        const auto all = multiply(a.data(), dtype, kRows, m.device);
        for (const std::int64_t count : {1, 2, 9, 16, 17, 40, 69}) {
          // The first rows, and the last: the same row then has another place in the batch.
          for (const std::int64_t first : {std::int64_t{0}, kRows - count}) {
            const auto start = static_cast<std::size_t>(first);
            const auto got = multiply(a.data() + start * a_row, dtype, count, m.device);
            ASSERT_EQ(std::memcmp(got.data(), all.data() + start * y_row, got.size()), 0)
                << count << " rows from " << first;
          }
        }
      }
    }
  }
}

TEST_P(PackedTest, MatricesSideBySideAreTheirProductsSideBySide) {
  for (const WeightFormat& format : kFormats) {
    const std::int64_t cols = 72;
    const TestMatrix parts[] = {matrix(33, 3, cols, format), matrix(7, 3, cols, format),
                                matrix(12, 3, cols, format)};
    const RowBlockMatrix matrices[] = {parts[0].device, parts[1].device, parts[2].device};
    const Matrices w{std::span(matrices)};
    for (const std::int64_t rows : {1, 3, 12, 40, 70}) {
      SCOPED_TRACE(fmt::format("{}, {} rows", name_of(format), rows));
      const auto host_a = as(floats(rows * cols, 0.2f), DType::kBFloat16);
      const Buffer a = upload(host_a);
      const auto all = multiply(a.data(), DType::kBFloat16, rows, w);
      for (std::size_t i = 0; i < w.size(); ++i) {
        std::vector<std::byte> own;
        for (std::int64_t r = 0; r < rows; ++r) {
          const auto* const row = all.data() + (r * w.padded_rows() + w.first(i)) * 4;
          own.insert(own.end(), row, row + w[i].padded_rows() * 4);
        }
        expect_products(own, wanted(host_a, DType::kBFloat16, rows, parts[i]), cols);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(PackedTest, GatheredRowsHaveTheirValues) {
  for (const WeightFormat& format : kFormats) {
    for (const std::int64_t cols : {1, 33, 427, 1032}) {
      SCOPED_TRACE(fmt::format("{}, {} columns", name_of(format), cols));
      const std::vector<std::byte> host_x = packed_rows(6, cols, format);
      const Buffer x = upload(host_x);
      const Buffer rows =
          upload(std::vector<std::int32_t>(std::begin(kGatheredRows), std::end(kGatheredRows)));
      const auto bytes = run(3 * static_cast<std::size_t>(cols) * 4, [&](std::byte* y) {
        ops->gather_rows(x.data(), format, rows.as<std::int32_t>(), 3, cols,
                         reinterpret_cast<float*>(y), *stream);
      });
      std::vector<double> want;
      for (const int row : kGatheredRows) {
        const auto* const at =
            host_x.data() + static_cast<std::size_t>(row) * format.row_bytes(cols);
        const auto values = test::row_values(at, format, cols);
        want.insert(want.end(), values.begin(), values.end());
      }
      EXPECT_EQ(test::to_doubles(bytes.data(), DType::kFloat32, 3 * cols), want);
    }
  }
}

TEST_P(PackedTest, UniformRowsArePackedAsTheirValuesAre) {
  const UniformValues values{.key = 77, .half_width = 0.035f, .stored = DType::kBFloat16};
  constexpr std::int64_t kFirst = 7, kRows = 5;
  for (const WeightFormat& format : {WeightFormat(DType::kBFloat16), WeightFormat(DType::kFloat32),
                                     kInt8Weights, kInt4Weights}) {
    for (const std::int64_t cols : {1, 33, 576, 5000}) {
      SCOPED_TRACE(fmt::format("{}, {} columns", name_of(format), cols));
      std::vector<std::byte> want(static_cast<std::size_t>(kRows) * format.row_bytes(cols));
      std::vector<float> made(static_cast<std::size_t>(kRows * cols));
      fill_uniform(values, kFirst * cols, kRows * cols, made.data(), DType::kFloat32);
      if (format.packed()) {
        EXPECT_EQ(pack_rows(made.data(), kRows, cols, format, want.data()), kRows);
      } else {
        convert(made.data(), DType::kFloat32, want.data(), format.dtype, made.size());
      }
      const auto got = run(want.size(), [&](std::byte* y) {
        ops->fill_uniform_rows(values, kFirst, kRows, cols, format, y, *stream);
      });
      EXPECT_EQ(got, want);
      EXPECT_TRUE(run(0, [&](std::byte* y) {
                    ops->fill_uniform_rows(values, kFirst, 0, cols, format, y, *stream);
                  }).empty());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, PackedTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace zi
