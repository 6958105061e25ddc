#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "ops_inputs.h"

namespace zi {
namespace {

struct MatmulCase {
  DType a;
  DType w;
};

struct MatmulTest : OpsInputsTest {
  std::vector<std::byte> multiply(const std::byte* a, DType dtype, std::int64_t rows,
                                  const TestMatrix& m) {
    return run(static_cast<std::size_t>(rows * m.device.padded_rows()) * 4, [&](std::byte* y) {
      ops->matmul(a, dtype, rows, m.device, reinterpret_cast<float*>(y), *stream);
    });
  }

  /// `want` and the sums |a w| in `magnitudes` may cover more rows than `bytes`.
  static void expect_products(const std::vector<std::byte>& bytes, const std::vector<double>& want,
                              const std::vector<double>& magnitudes, std::int64_t cols) {
    const auto* got = reinterpret_cast<const float*>(bytes.data());
    for (std::size_t i = 0; i < bytes.size() / sizeof(float); ++i) {
      // Exact products; each of the cols float32 sums loses at most 2^-24 of what is summed so
      // far, in practice far less than the bound cols * 2^-24 * sum |a w|.
      const double tolerance =
          (8 + std::sqrt(static_cast<double>(cols))) * std::ldexp(1.0, -24) * magnitudes[i];
      ASSERT_NEAR(got[i], want[i], tolerance) << "element " << i;
    }
  }
};

constexpr MatmulCase kMatmulCases[] = {
    {DType::kBFloat16, DType::kBFloat16}, {DType::kFloat32, DType::kFloat32},
    {DType::kFloat32, DType::kBFloat16},  {DType::kFloat32, DType::kFloat16},
    {DType::kFloat16, DType::kFloat16},   {DType::kBFloat16, DType::kFloat32},
};

TEST_P(MatmulTest, MatchesTheReferenceForEveryPairOfTypes) {
  for (const auto [a_dtype, w_dtype] : kMatmulCases) {
    for (const auto& [cols, block_rows, blocks] :
         {std::tuple{64, 64, 1}, {320, 107, 4}, {33, 5, 3}, {427, 65, 1}, {1, 1, 1}}) {
      for (const std::int64_t rows : {1, 17, 40}) {
        SCOPED_TRACE(fmt::format("{} x {}, {} rows, {} blocks of ({}, {})", name_of(a_dtype),
                                 name_of(w_dtype), rows, blocks, block_rows, cols));
        const TestMatrix m = matrix(block_rows, blocks, cols, w_dtype);
        const auto host_a = as(floats(rows * cols), a_dtype);
        const Buffer a = upload(host_a);
        const auto bytes = multiply(a.data(), a_dtype, rows, m);
        std::vector<double> magnitudes;
        const auto want = test::matmul(host_a.data(), a_dtype, rows, m.host, magnitudes);
        expect_products(bytes, want, magnitudes, cols);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(MatmulTest, MatricesSideBySideMatchTheReference) {
  // Tiles that end within a matrix, row blocks, columns that blocks of a cluster share, and in the
  // last case more tiles than a device runs blocks at once.
  struct Case {
    std::vector<std::pair<std::int64_t, int>> block_rows_and_blocks;
    std::int64_t cols;
  };
  for (const Case& c :
       {Case{{{300, 1}, {40, 1}, {40, 1}}, 1032}, Case{{{33, 4}, {7, 4}, {7, 4}}, 2056},
        Case{{{129, 2}, {129, 2}}, 520}, Case{{{20000, 1}, {65, 1}, {17000, 1}}, 72}}) {
    // The other backend has one kernel for each matrix, and sanitizers are slow.
    if (GetParam().exact && c.cols != 520) continue;
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      std::vector<TestMatrix> parts;
      std::vector<RowBlockMatrix> matrices;
      for (const auto& [block_rows, blocks] : c.block_rows_and_blocks) {
        parts.push_back(matrix(block_rows, blocks, c.cols, dtype));
        matrices.push_back(parts.back().device);
      }
      const Matrices w{std::span<const RowBlockMatrix>(matrices)};
      for (const std::int64_t rows : {1, 9, 20, 64, 100, 128, 300}) {
        // A long time in double precision.
        if (w.padded_rows() > 2000 && (rows % 2 == 1 || rows > 128)) continue;
        SCOPED_TRACE(fmt::format("{} rows, {} of {} columns", rows, w.padded_rows(), c.cols));
        const auto host_a = as(floats(rows * c.cols), dtype);
        const Buffer a = upload(host_a);
        const auto all = run(static_cast<std::size_t>(rows * w.padded_rows()) * 4, [&](auto* y) {
          ops->matmul(a.data(), dtype, rows, w, reinterpret_cast<float*>(y), *stream);
        });
        for (std::size_t i = 0; i < w.size(); ++i) {
          std::vector<double> magnitudes;
          const auto want = test::matmul(host_a.data(), dtype, rows, parts[i].host, magnitudes);
          const auto columns = static_cast<std::size_t>(w[i].padded_rows()) * 4;
          std::vector<std::byte> own;
          for (std::int64_t r = 0; r < rows; ++r) {
            const auto* const row = all.data() + (r * w.padded_rows() + w.first(i)) * 4;
            own.insert(own.end(), row, row + columns);
          }
          expect_products(own, want, magnitudes, c.cols);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(MatmulTest, FewRowsOfSixteenBitsMatchTheReference) {
  // Decode passes: the CUDA backend has a kernel for up to 16 rows and cols in multiples of 8. It
  // cuts weights into tiles of 32 rows and steps of 512 cols; the last case has more tiles than a
  // device runs blocks at once.
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const auto& [cols, block_rows, blocks] : {std::tuple{64, 1, 4},
                                                   {8, 33, 1},
                                                   {320, 5, 3},
                                                   {64, 107, 2},
                                                   {1288, 107, 4},
                                                   {4096, 1, 1},
                                                   {4096, 107, 1},
                                                   {64, 4096, 1},
                                                   {520, 4096, 3}}) {
      constexpr std::int64_t kRows = 17;
      const TestMatrix m = matrix(block_rows, blocks, cols, dtype);
      const auto host_a = as(floats(kRows * cols), dtype);
      const Buffer a = upload(host_a);
      std::vector<double> magnitudes;
      const auto want = test::matmul(host_a.data(), dtype, kRows, m.host, magnitudes);
      for (const std::int64_t rows : {1, 2, 7, 8, 9, 16, 17}) {
        SCOPED_TRACE(fmt::format("{}, {} rows, {} blocks of ({}, {})", name_of(dtype), rows, blocks,
                                 block_rows, cols));
        expect_products(multiply(a.data(), dtype, rows, m), want, magnitudes, cols);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(MatmulTest, SomeDozenRowsOfSixteenBitsMatchTheReference) {
  // The CUDA backend has a kernel for up to 64 rows, with tiles of 128 weight rows and steps of 64
  // cols. Where there are few tiles, blocks of a cluster share the cols of one; the last case has
  // more tiles than a device runs blocks at once.
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const auto& [cols, block_rows, blocks] : {std::tuple{8, 33, 1},
                                                   {2056, 107, 2},
                                                   {1096, 5, 3},
                                                   {520, 300, 3},
                                                   {320, 128, 2},
                                                   {72, 34000, 1}}) {
      constexpr std::int64_t kRows = 65;
      const TestMatrix m = matrix(block_rows, blocks, cols, dtype);
      const auto host_a = as(floats(kRows * cols), dtype);
      const Buffer a = upload(host_a);
      std::vector<double> magnitudes;
      const auto want = test::matmul(host_a.data(), dtype, kRows, m.host, magnitudes);
      for (const std::int64_t rows : {17, 31, 32, 33, 63, 64, 65}) {
        SCOPED_TRACE(fmt::format("{}, {} rows, {} blocks of ({}, {})", name_of(dtype), rows, blocks,
                                 block_rows, cols));
        expect_products(multiply(a.data(), dtype, rows, m), want, magnitudes, cols);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(MatmulTest, RowsHaveTheSameBitsInEveryBatch) {
  if (!GetParam().exact) GTEST_SKIP() << "this backend promises equality within rounding only";
  constexpr std::int64_t kRows = 70;
  for (const auto [a_dtype, w_dtype] :
       {kMatmulCases[0], kMatmulCases[1], kMatmulCases[2], kMatmulCases[4]}) {
    for (const auto& [cols, block_rows, blocks] :
         {std::tuple{64, 427, 1}, {320, 107, 2}, {1280, 75, 1}, {4096, 67, 1}, {320, 3, 2}}) {
      SCOPED_TRACE(fmt::format("{} x {}, {} blocks of ({}, {})", name_of(a_dtype), name_of(w_dtype),
                               blocks, block_rows, cols));
      const TestMatrix m = matrix(block_rows, blocks, cols, w_dtype);
      const std::size_t a_row = static_cast<std::size_t>(cols) * size_of(a_dtype);
      const Buffer a = upload(as(floats(kRows * cols), a_dtype));
      const std::size_t y_row = static_cast<std::size_t>(m.device.padded_rows()) * 4;
      const auto all = multiply(a.data(), a_dtype, kRows, m);
      for (std::int64_t count = 1; count <= kRows; ++count) {
        // Every count where it is cheap, else around the tiles' edges.
        const bool edge = count % 16 <= 1 || count % 16 == 15 || count >= kRows - 1;
        if (!edge && cols > (GetParam().name == "cpu1" ? 1000 : 64)) continue;
        // The first rows, and the last: the same row then has another place in the batch.
        for (const std::int64_t first : {std::int64_t{0}, kRows - count}) {
          const auto start = static_cast<std::size_t>(first);
          const auto got = multiply(a.data() + start * a_row, a_dtype, count, m);
          ASSERT_EQ(std::memcmp(got.data(), all.data() + start * y_row, got.size()), 0)
              << count << " rows from " << first;
        }
      }
    }
  }
}

TEST_P(MatmulTest, ManyRowsAreCutIntoGroupsWithoutASeam) {
  if (!GetParam().exact) GTEST_SKIP() << "this backend promises equality within rounding only";
  // 32 MiB hold 182 tiles of 11,264 float32 columns... a wide row makes the group the minimum of 8
  // tiles.
  constexpr std::int64_t kCols = 70000;
  const TestMatrix m = matrix(9, 1, kCols, DType::kFloat32);
  const Buffer a = upload(floats(150 * kCols));
  const auto all = multiply(a.data(), DType::kFloat32, 150, m);
  for (const std::size_t row : {0u, 127u, 128u, 149u}) {
    const auto one = multiply(a.data() + row * kCols * 4, DType::kFloat32, 1, m);
    EXPECT_EQ(std::memcmp(one.data(), all.data() + row * 9 * 4, one.size()), 0) << "row " << row;
  }
}

TEST_P(MatmulTest, NoRowsWriteNothing) {
  const TestMatrix m = matrix(16, 1, 32, DType::kBFloat16);
  EXPECT_TRUE(multiply(m.device.data, DType::kBFloat16, 0, m).empty());
}

INSTANTIATE_TEST_SUITE_P(Backends, MatmulTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace zi
