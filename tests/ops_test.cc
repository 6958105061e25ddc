#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "ops_fixture.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

TEST_P(OpsTest, LayerNormMatchesTheReference) {
  for (const std::int64_t cols : {1, 7, 16, 320, 1029, 4095, 4096, 14335, 14336, 65533, 65536}) {
    for (const std::int64_t rows : {1, 3, 33}) {
      if (cols > 4096 && rows > 3) continue;
      auto host_x = floats(rows * cols, 3);
      for (float& v : host_x) v += 1;
      const auto gamma = floats(cols);
      const auto beta = floats(cols);
      const auto want =
          test::layer_norm(host_x.data(), gamma.data(), beta.data(), 1e-5, rows, cols);
      const Buffer x = upload(host_x);
      const Buffer g = upload(gamma);
      const Buffer b = upload(beta);
      for (const DType dtype : kDTypes) {
        SCOPED_TRACE(fmt::format("({}, {}) {}", rows, cols, name_of(dtype)));
        const auto got = run(want.size() * size_of(dtype), [&](std::byte* y) {
          ops->normalize(x.as<float>(), {g.as<float>(), b.as<float>()}, rows, cols, y, dtype,
                         *stream);
        });
        // float32 sums of values up to 10: a few units of 2^-24 of the row's size, times gamma (<
        // 5).
        expect_near(got, dtype, want, 2e-6, 1e-5);
      }
    }
  }
}

TEST_P(OpsTest, BiasResidualNormKeepsTheSumAndItsNorm) {
  const std::int64_t rows = 3;
  for (const std::int64_t cols : {5, 320, 4095, 4096, 14335, 14336, 65536}) {
    const std::int64_t ld = cols + 3 * (cols % 2);  // whole fours, or not
    SCOPED_TRACE(fmt::format("{} columns of {}", cols, ld));
    const auto host_x = floats(rows * ld);
    const auto bias = floats(cols);
    const auto host_residual = floats(rows * cols, 3);
    const auto gamma = floats(cols);
    const auto beta = floats(cols);
    std::vector<float> sum;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        sum.push_back(
            host_residual[static_cast<std::size_t>(r * cols + c)] +
            (host_x[static_cast<std::size_t>(r * ld + c)] + bias[static_cast<std::size_t>(c)]));
      }
    }
    const auto want = test::layer_norm(sum.data(), gamma.data(), beta.data(), 1e-5, rows, cols);
    const Buffer x = upload(host_x);
    const Buffer b = upload(bias);
    const Buffer g = upload(gamma);
    const Buffer be = upload(beta);
    for (const DType dtype : kDTypes) {
      std::vector<std::byte> residual;
      const auto got = run(want.size() * size_of(dtype), [&](std::byte* y) {
        residual = run(host_residual.size() * 4, [&](std::byte* r) {
          device->copy(r, host_residual.data(), host_residual.size() * 4, *stream);
          ops->bias_residual_norm(x.as<float>(), ld, b.as<float>(), reinterpret_cast<float*>(r),
                                  {g.as<float>(), be.as<float>()}, rows, cols, y, dtype, *stream);
        });
      });
      expect_near(got, dtype, want, 2e-6, 1e-5);
      expect_near(residual, DType::kFloat32, {sum.begin(), sum.end()}, 1e-6, 1e-6);
    }
  }
}

TEST_P(OpsTest, LayerNormWorksInPlace) {
  const auto x = floats(5 * 40);
  const auto ones = std::vector<float>(40, 1);
  const auto zeros = std::vector<float>(40, 0);
  const auto want = test::layer_norm(x.data(), ones.data(), zeros.data(), 1e-5, 5, 40);
  const Buffer gamma = upload(ones);
  const Buffer beta = upload(zeros);
  const Buffer start = upload(x);
  const auto got = run(x.size() * 4, [&](std::byte* y) {
    device->copy(y, start.data(), x.size() * 4, *stream);
    auto* rows = reinterpret_cast<float*>(y);
    ops->normalize(rows, {gamma.as<float>(), beta.as<float>()}, 5, 40, rows, DType::kFloat32,
                   *stream);
  });
  expect_near(got, DType::kFloat32, want, 2e-6, 1e-5);
}

TEST_P(OpsTest, BiasGeluMatchesTheReferenceOverItsWholeRange) {
  const std::int64_t rows = 5;
  const std::int64_t cols = 403;
  const std::int64_t ld = 410;
  auto host_x = floats(rows * ld, 4);
  const std::vector<float> special = {0.0f, -0.0f, 1e-20f, -12, 12, -80, 80, -1e4f, 1e4f, -3e38f};
  std::copy(special.begin(), special.end(), host_x.begin());
  auto bias = floats(cols, 0.1f);
  std::fill_n(bias.begin(), special.size(), 0.0f);
  const auto want = test::bias_gelu(host_x.data(), ld, bias.data(), rows, cols);
  const Buffer x = upload(host_x);
  const Buffer b = upload(bias);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const auto got = run(want.size() * size_of(dtype), [&](std::byte* y) {
      ops->activate(x.as<float>(), ld, {Activation::kGeluTanh, b.as<float>()}, rows, cols, y, dtype,
                    *stream);
    });
    // 1e-6 of the value, but for |x| beyond 6 on the left, where the argument's rounding is
    // multiplied by itself: e^-2u with u up to 15 loses 15 * 2^-23 of values below 1e-9.
    expect_near(got, dtype, want, 1e-6, 1e-9);
  }
}

TEST_P(OpsTest, BiasResidualAddsBoth) {
  const std::int64_t rows = 4;
  const std::int64_t cols = 37;
  const std::int64_t ld = 40;
  const auto host_x = floats(rows * ld);
  const auto bias = floats(cols);
  const auto residual = floats(rows * cols);
  const Buffer x = upload(host_x);
  const Buffer b = upload(bias);
  const Buffer start = upload(residual);
  const auto got = run(residual.size() * 4, [&](std::byte* y) {
    device->copy(y, start.data(), residual.size() * 4, *stream);
    ops->bias_residual(x.as<float>(), ld, b.as<float>(), rows, cols, reinterpret_cast<float*>(y),
                       *stream);
  });
  std::vector<double> want;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      want.push_back(static_cast<double>(residual[static_cast<std::size_t>(r * cols + c)]) +
                     host_x[static_cast<std::size_t>(r * ld + c)] +
                     bias[static_cast<std::size_t>(c)]);
    }
  }
  expect_near(got, DType::kFloat32, want, 1e-6, 1e-6);
}

TEST_P(OpsTest, SmallOpsGiveARowTheSameBitsInEveryBatch) {
  if (!GetParam().exact) GTEST_SKIP() << "this backend promises equality within rounding only";
  const std::int64_t rows = 41;
  const std::int64_t cols = 1027;  // odd: rows lie at every alignment
  const auto host_x = floats(rows * cols);
  const Buffer x = upload(host_x);
  const Buffer gamma = upload(floats(cols));
  const Buffer beta = upload(floats(cols));
  const auto both = [&](const float* start, std::int64_t count) {
    const std::size_t bytes = static_cast<std::size_t>(count * cols) * 4;
    auto result = run(bytes, [&](std::byte* y) {
      ops->normalize(start, {gamma.as<float>(), beta.as<float>()}, count, cols, y, DType::kFloat32,
                     *stream);
    });
    const auto gelu = run(bytes, [&](std::byte* y) {
      ops->activate(start, cols, {Activation::kGeluTanh, beta.as<float>()}, count, cols, y,
                    DType::kFloat32, *stream);
    });
    return std::pair{result, gelu};
  };
  const auto all = both(x.as<float>(), rows);
  for (std::int64_t row = 0; row < rows; ++row) {
    // At an address that is another one within a vector, too.
    std::vector<float> shifted(static_cast<std::size_t>((row * 5 + 3) % 16), 0.0f);
    const std::size_t shift = shifted.size();
    shifted.insert(shifted.end(), host_x.begin() + row * cols, host_x.begin() + (row + 1) * cols);
    const Buffer moved = upload(shifted);
    const auto one = both(moved.as<float>() + shift, 1);
    const auto at = static_cast<std::size_t>(row * cols) * 4;
    ASSERT_EQ(std::memcmp(one.first.data(), all.first.data() + at, one.first.size()), 0) << row;
    ASSERT_EQ(std::memcmp(one.second.data(), all.second.data() + at, one.second.size()), 0) << row;
  }
}

TEST_P(OpsTest, GatherRowsTakesThemInTheGivenOrder) {
  const Buffer rows = upload(std::vector<std::int32_t>{5, 0, 5});
  for (const std::size_t cols : {11, 12, 1032}) {
    const auto values = floats(static_cast<std::int64_t>(6 * cols));
    for (const DType dtype : kDTypes) {
      const auto host_x = as(values, dtype);
      std::vector<float> want(6 * cols);
      convert(host_x.data(), dtype, want.data(), DType::kFloat32, want.size());
      const Buffer x = upload(host_x);
      const std::size_t row = cols * sizeof(float);
      const auto got = run(3 * row, [&](std::byte* y) {
        ops->gather_rows(x.data(), dtype, rows.as<std::int32_t>(), 3,
                         static_cast<std::int64_t>(cols), reinterpret_cast<float*>(y), *stream);
      });
      EXPECT_EQ(std::memcmp(got.data(), want.data() + 5 * cols, row), 0);
      EXPECT_EQ(std::memcmp(got.data() + row, want.data(), row), 0);
      EXPECT_EQ(std::memcmp(got.data() + 2 * row, want.data() + 5 * cols, row), 0);
    }
  }
}

TEST_P(OpsTest, ConvertRoundsAsTheHostDoes) {
  auto values = floats(2500, 100);
  const std::vector<float> special = {0.0f,  -0.0f,   65504.0f, 65520.0f, 1e30f,    -1e30f,
                                      6e-8f, 5.9e-8f, 1e-40f,   INFINITY, -INFINITY};
  std::copy(special.begin(), special.end(), values.begin());
  for (const DType from : kDTypes) {
    const auto host_x = as(values, from);
    const Buffer x = upload(host_x);
    for (const DType to : kDTypes) {
      SCOPED_TRACE(fmt::format("{} to {}", name_of(from), name_of(to)));
      std::vector<std::byte> want(values.size() * size_of(to));
      std::vector<float> exact(values.size());
      convert(host_x.data(), from, exact.data(), DType::kFloat32, exact.size());
      convert(exact.data(), DType::kFloat32, want.data(), to, exact.size());
      const auto got = run(want.size(), [&](std::byte* y) {
        ops->convert(x.data(), from, y, to, static_cast<std::int64_t>(values.size()), *stream);
      });
      EXPECT_EQ(got, want);
    }
  }
}

TEST_P(OpsTest, ConvertKeepsNaN) {
  const std::vector<float> nan(19, std::numeric_limits<float>::quiet_NaN());
  const Buffer x = upload(nan);
  for (const DType to : {DType::kBFloat16, DType::kFloat16}) {
    const auto got = run(
        19 * 2, [&](std::byte* y) { ops->convert(x.data(), DType::kFloat32, y, to, 19, *stream); });
    for (const double v : test::to_doubles(got.data(), to, 19)) EXPECT_TRUE(std::isnan(v));
  }
}

TEST_P(OpsTest, PutColumnsPutsEachRunInItsPlaceAndLeavesTheRest) {
  struct Case {
    std::int64_t rows;
    std::int64_t ld;
    std::vector<std::int64_t> cols;  // of the runs, the second half in pinned memory
    std::int64_t gap;                // columns between the runs
  };
  for (const Case& c : {Case{1, 64, {16, 32}, 8}, Case{3, 61, {7, 1, 0, 40}, 1},
                        Case{5, 2060, {1024, 4, 8, 1000, 8, 4}, 0}, Case{2, 9, {5}, 3}}) {
    const auto count = static_cast<std::size_t>(c.rows * c.ld);
    std::vector<float> x(count), want(count, -1.0f);
    std::iota(x.begin(), x.end(), 1.0f);
    const Buffer device_x = upload(x);
    const Buffer pinned_x = device->allocate_pinned(count * sizeof(float));
    std::memcpy(pinned_x.data(), x.data(), count * sizeof(float));
    std::vector<ColumnRun> runs;
    std::int64_t first = 0;
    for (std::size_t i = 0; i < c.cols.size(); ++i) {
      const Buffer& from = i < c.cols.size() / 2 ? device_x : pinned_x;
      runs.push_back({from.as<float>() + i * 4, c.ld, c.cols[i], first});
      for (std::int64_t row = 0; row < c.rows; ++row) {
        std::copy_n(x.begin() + static_cast<std::ptrdiff_t>(i) * 4 + row * c.ld, c.cols[i],
                    want.begin() + row * c.ld + first);
      }
      first += c.cols[i] + c.gap;
    }
    const std::vector<float> before(count, -1.0f);
    const Buffer kept = upload(before);
    const auto bytes = run(count * sizeof(float), [&](std::byte* y) {
      device->copy(y, kept.data(), count * sizeof(float), *stream);
      ops->put_columns(runs, c.rows, reinterpret_cast<float*>(y), c.ld, *stream);
    });
    std::vector<float> got(count);
    std::memcpy(got.data(), bytes.data(), bytes.size());
    EXPECT_EQ(got, want) << c.rows << " rows of " << c.ld;
  }
}

TEST_P(OpsTest, InterleavePutsTheSlicesOfEachMatrixSideBySide) {
  const int blocks = 3;
  const std::int64_t rows = 2;
  const std::vector<std::vector<std::int64_t>> cuts = {{10}, {3, 7}, {5, 1, 4}};
  for (const DType type : {DType::kFloat32, DType::kBFloat16}) {
    for (const auto& slices : cuts) {
      // Value = its place in the parts, which bfloat16 holds exactly up to 256.
      std::vector<float> values(60);
      std::iota(values.begin(), values.end(), 0.0f);
      const Buffer exact = upload(values);
      Buffer x = device->allocate(60 * size_of(type));
      ops->convert(exact.data(), DType::kFloat32, x.data(), type, 60, *stream);
      const auto bytes = run(60 * size_of(type), [&](std::byte* y) {
        ops->interleave(x.data(), type, blocks, rows, slices, y, *stream);
      });
      const std::vector<double> got = test::to_doubles(bytes.data(), type, 60);
      std::size_t at = 0;
      for (int row = 0; row < rows; ++row) {
        std::int64_t first = 0;
        for (const std::int64_t width : slices) {
          for (int block = 0; block < blocks; ++block) {
            for (std::int64_t i = 0; i < width; ++i) {
              EXPECT_EQ(got[at++], static_cast<double>((block * rows + row) * 10 + first + i));
            }
          }
          first += width;
        }
      }
    }
  }
}

TEST_P(OpsTest, RefuseHeadsThatAreTooWideOrDoNotDivide) {
  const KvLayer kv{nullptr, DType::kFloat32, 1, 257};
  EXPECT_THROW(
      ops->attention(nullptr, 1, RaggedBatch{}, kv, nullptr, nullptr, DType::kFloat32, *stream),
      ConfigError);
  const KvLayer three{nullptr, DType::kFloat32, 3, 16};
  EXPECT_THROW(
      ops->attention(nullptr, 4, RaggedBatch{}, three, nullptr, nullptr, DType::kFloat32, *stream),
      ConfigError);
}

INSTANTIATE_TEST_SUITE_P(Backends, OpsTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace zi
