#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "ops_fixture.h"
#include "zero_infer/error.h"
#include "zero_infer/sampler.h"

// Rows to sample name what differs from greedy; the rest has its default.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace zi {
namespace {

/// Samples `rows` from logits (rows, ld) and expects what the host's sampler says of each.
void expect_samples_of_the_host(OpsTest& test, const std::vector<float>& host_logits,
                                std::int64_t ld, std::int64_t vocabulary,
                                const std::vector<SampleRow>& rows, int top) {
  const Buffer logits = test.upload(host_logits);
  const std::size_t count = rows.size();
  const std::size_t tops = count * static_cast<std::size_t>(top);
  Buffer memory = test.device->allocate_pinned((2 * count + 2 * tops) * 4 + kGuardBytes);
  std::fill_n(memory.data(), memory.bytes(), kGuard);
  SampleResults results;
  results.ids = memory.as<std::int32_t>();
  results.logprobs = memory.as<float>() + count;
  results.top = top;
  results.top_ids = memory.as<std::int32_t>() + 2 * count;
  results.top_logprobs = memory.as<float>() + 2 * count + tops;
  test.ops->sample(logits.as<float>(), ld, vocabulary, rows, results, *test.stream);
  test.stream->synchronize();

  const auto expect_logprob = [](float got, float want) {
    // float32 sums of exponents, each right to a few units of 2^-24, and logits of some hundreds.
    const bool equal = got == want;  // -infinity, too
    ASSERT_TRUE(equal || std::abs(got - want) < 1e-4f) << got << " instead of " << want;
  };
  std::vector<std::int32_t> top_ids(static_cast<std::size_t>(top));
  std::vector<float> top_logprobs(static_cast<std::size_t>(top));
  for (std::size_t i = 0; i < count; ++i) {
    const SampleRow& row = rows[i];
    SCOPED_TRACE(fmt::format(
        "row {} of {}, vocabulary {}: temperature {}, top_k {}, top_p {}, penalty {} of {} ids, "
        "target {}",
        i, count, vocabulary, row.temperature, row.top_k, row.top_p, row.repetition_penalty,
        row.history.size(), row.target));
    const Sampled want = sample_row({host_logits.data() + i * static_cast<std::size_t>(ld),
                                     static_cast<std::size_t>(vocabulary)},
                                    row, top_ids, top_logprobs);
    ASSERT_EQ(results.ids[i], want.id);
    expect_logprob(results.logprobs[i], want.logprob);
    for (std::size_t k = 0; k < top_ids.size(); ++k) {
      const std::size_t at = i * top_ids.size() + k;
      ASSERT_EQ(results.top_ids[at], top_ids[k]) << k;
      expect_logprob(results.top_logprobs[at], top_logprobs[k]);
    }
  }
  for (std::size_t i = (2 * count + 2 * tops) * 4; i < memory.bytes(); ++i) {
    ASSERT_EQ(memory.data()[i], kGuard) << "a byte after the results was changed";
  }
}

/// Rows of every kind, mixed; the n-th and its seed depend on n only. `history` must outlive them.
std::vector<SampleRow> mixed_rows(std::size_t count, std::int64_t vocabulary,
                                  const std::vector<std::int32_t>& history) {
  const SampleRow kinds[] = {
      {},
      {.repetition_penalty = 1.3f, .history = history},
      {.temperature = 1, .target = static_cast<std::int32_t>(vocabulary - 1)},
      {.temperature = 1},
      {.temperature = 0.7f, .top_k = 5},
      {.temperature = 1, .top_p = 0.9f},
      {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f},
      {.temperature = 1.2f, .top_p = 0.8f, .repetition_penalty = 1.2f, .history = history},
      {.temperature = 50, .top_p = 0.97f},
      {.temperature = 3, .top_k = 3000, .top_p = 0.99f},
      {.temperature = 1, .top_k = 1},
      {.temperature = 0.01f, .top_k = 2500, .repetition_penalty = 0.8f, .history = history},
      {.temperature = 2, .top_k = static_cast<int>(vocabulary), .top_p = 1e-6f},
      {.temperature = 1e30f, .top_k = 1000000},
  };
  std::vector<SampleRow> rows;
  for (std::size_t i = 0; i < count; ++i) {
    rows.push_back(kinds[i % std::size(kinds)]);
    rows.back().seed = 17;
    rows.back().sequence = i;
    rows.back().position = i % 5;
  }
  return rows;
}

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

TEST_P(OpsTest, SampleReportsTheBestIdsBelowTheVocabulary) {
  const std::int64_t ld = 12;
  std::vector<float> host_logits(2 * 12, 0.0f);
  host_logits[3] = 5;
  host_logits[7] = 4;
  host_logits[11] = 99;  // padding of the last slice
  host_logits[12 + 9] = 2;
  host_logits[12 + 2] = 2;
  const Buffer logits = upload(host_logits);
  Buffer memory = device->allocate_pinned(4096);
  SampleResults results;
  results.ids = memory.as<std::int32_t>();
  results.logprobs = memory.as<float>() + 16;
  results.top = 2;
  results.top_ids = memory.as<std::int32_t>() + 32;
  results.top_logprobs = memory.as<float>() + 64;
  std::vector<SampleRow> rows(2);
  rows[1].target = 9;
  ops->sample(logits.as<float>(), ld, 10, rows, results, *stream);
  rows.clear();  // copied before the call returned
  stream->synchronize();
  EXPECT_EQ(results.ids[0], 3);
  EXPECT_NEAR(results.logprobs[0], 5 - std::log(std::exp(5.0) + std::exp(4.0) + 8), 1e-5);
  EXPECT_EQ(results.ids[1], 9);
  EXPECT_NEAR(results.logprobs[1], 2 - std::log(2 * std::exp(2.0) + 8), 1e-5);
  EXPECT_EQ(results.top_ids[0], 3);
  EXPECT_EQ(results.top_ids[1], 7);
  EXPECT_EQ(results.top_ids[2], 2);
  EXPECT_EQ(results.top_ids[3], 9);
}

TEST_P(OpsTest, SampleUsesTheHistoryAsItWasAtTheCall) {
  std::vector<float> host_logits = {1, 3, 2, 0};
  const Buffer logits = upload(host_logits);
  Buffer memory = device->allocate_pinned(64);
  SampleResults results;
  results.ids = memory.as<std::int32_t>();
  results.logprobs = memory.as<float>() + 4;
  std::vector<std::int32_t> history = {1};
  SampleRow row;
  row.repetition_penalty = 2;
  row.history = history;
  ops->sample(logits.as<float>(), 4, 4, std::span(&row, 1), results, *stream);
  history[0] = 2;
  stream->synchronize();
  EXPECT_EQ(results.ids[0], 2);
}

TEST_P(OpsTest, SampleDrawsAsTheHostDoes) {
  for (const std::int64_t vocabulary : {1, 2, 31, 33, 1023, 8193, 20011}) {
    const std::int64_t ld = vocabulary + vocabulary % 5;
    const std::vector<std::int32_t> history = {0, 5, 5, 0, 30, 700, 5, -1, 2147483647};
    const auto logits = floats(28 * ld, 3);
    expect_samples_of_the_host(*this, logits, ld, vocabulary, mixed_rows(28, vocabulary, history),
                               5);
  }
}

TEST_P(OpsTest, SampleDrawsFromALargeVocabulary) {
  const std::int64_t vocabulary = 250680;
  const std::int64_t ld = 250880;
  std::vector<std::int32_t> history(1000);
  for (std::size_t i = 0; i < history.size(); ++i) {
    history[i] = static_cast<std::int32_t>(i * i % 250680);
  }
  auto logits = floats(14 * ld, 3);
  for (float& x : logits) x += 250;  // real models' logits are far from 0
  expect_samples_of_the_host(*this, logits, ld, vocabulary, mixed_rows(14, vocabulary, history),
                             100);
}

TEST_P(OpsTest, SampleTakesTheLowerIdsAmongEquals) {
  const std::int64_t vocabulary = 9001;
  const std::vector<std::int32_t> history = {1, 2, 3, 9000};
  // Whole numbers: any k cuts through equals. Then nothing but equals, zeros of either sign, and
  // mostly -infinity.
  auto steps = floats(28 * vocabulary, 2);
  for (float& x : steps) x = std::round(x);
  const std::vector<float> equal(steps.size(), 1.5f);
  auto zeros = steps;
  for (float& x : zeros) x = x > 0 ? 0.0f : -0.0f;
  auto few = steps;
  for (float& x : few) x = x > 3 ? x : -std::numeric_limits<float>::infinity();
  for (const auto& logits : {steps, equal, zeros, few}) {
    expect_samples_of_the_host(*this, logits, vocabulary, vocabulary,
                               mixed_rows(28, vocabulary, history), 20);
  }
  std::vector<SampleRow> rows(28);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = {.temperature = 1, .top_k = static_cast<int>(1 + i * 321), .seed = 3, .sequence = i};
  }
  expect_samples_of_the_host(*this, equal, vocabulary, vocabulary, rows, 0);
  expect_samples_of_the_host(*this, steps, vocabulary, vocabulary, rows, 0);
}

TEST_P(OpsTest, SampleReportsNoMoreIdsThanThereAre) {
  const auto logits = floats(3 * 10);
  expect_samples_of_the_host(*this, logits, 10, 7, mixed_rows(3, 7, {}), 9);
}

TEST_P(OpsTest, SampleTakesManyRowsAtOnce) {
  const std::vector<std::int32_t> history = {3, 60, 3, 17};
  const auto few = floats(70 * 3001, 3);
  expect_samples_of_the_host(*this, few, 3001, 3000, mixed_rows(70, 3000, history), 3);
  const auto many = floats(1100 * 67, 3);
  expect_samples_of_the_host(*this, many, 67, 61, mixed_rows(1100, 61, history), 3);
}

TEST_P(OpsTest, SampleTakesLongHistories) {
  const std::int64_t vocabulary = 40001;
  std::vector<std::vector<std::int32_t>> histories(4, std::vector<std::int32_t>(100000));
  std::vector<SampleRow> rows;
  for (auto& history : histories) {
    for (auto& id : history) id = static_cast<std::int32_t>(random() % 30000);
    rows.push_back({.temperature = rows.size() % 2 == 0 ? 0.0f : 1.0f,
                    .repetition_penalty = 1.5f,
                    .history = history});
  }
  auto logits = floats(4 * vocabulary, 2);
  expect_samples_of_the_host(*this, logits, vocabulary, vocabulary, rows, 2);
}

TEST_P(OpsTest, SampleDrawsAsTheHostDoesAtTheLimitsOfWhatIsAccepted) {
  // The options' limits are 1e-30 and 1e30, and 0 for the temperature.
  const std::int64_t vocabulary = 5003;
  const std::vector<std::int32_t> history = {0, 7, 7, 30, 700, 5002};
  std::vector<SampleRow> rows;
  for (const float temperature : {0.0f, 1e-30f, 1.0f, 1e30f}) {
    for (const float penalty : {1.0f, 1e-30f, 1e30f}) {
      for (const float top_p : {1.0f, 1e-30f}) {
        for (const int top_k : {0, 3}) {
          rows.push_back({.temperature = temperature,
                          .top_k = top_k,
                          .top_p = top_p,
                          .repetition_penalty = penalty,
                          .seed = 5,
                          .sequence = rows.size(),
                          .history = history});
        }
      }
    }
  }
  // With the second scale the penalty leaves float32.
  for (const float scale : {3.0f, 3e9f}) {
    auto logits = floats(static_cast<std::int64_t>(rows.size()) * vocabulary, 1);
    for (float& x : logits) x *= scale;
    expect_samples_of_the_host(*this, logits, vocabulary, vocabulary, rows, 0);
  }
}

TEST_P(OpsTest, SampleGivesNoIdToARowThatIsNotOfNumbers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
    std::vector<float> host_logits(3 * 8, 1.0f);
    std::fill_n(host_logits.begin() + 8, 8, bad);
    const Buffer logits = upload(host_logits);
    Buffer memory = device->allocate_pinned(64);
    SampleResults results;
    results.ids = memory.as<std::int32_t>();
    results.logprobs = memory.as<float>() + 4;
    for (const SampleRow& kind : {SampleRow{}, {.temperature = 1}, {.target = 0}}) {
      const std::vector<SampleRow> rows(3, kind);
      ops->sample(logits.as<float>(), 8, 8, rows, results, *stream);
      stream->synchronize();
      EXPECT_EQ(results.ids[1], kNoId);
      EXPECT_TRUE(std::isnan(results.logprobs[1]));
      EXPECT_GE(results.ids[0], 0);
      EXPECT_NEAR(results.logprobs[2], -std::log(8.0), 1e-5);
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
