#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "ops_inputs.h"

/// What families other than BLOOM ask of the operations: RMSNorm, gates, no biases, matrices side
/// by side, positions, norms of queries and keys.
namespace zi {
namespace {

struct VariantsTest : OpsInputsTest {
  static double at(const std::vector<float>& v, std::int64_t i) {
    return v[static_cast<std::size_t>(i)];
  }
};

TEST_P(VariantsTest, RmsNormHasNoMeanAndNoBeta) {
  for (const std::int64_t cols : {1, 7, 320, 4096, 5000, 14336}) {
    const std::int64_t rows = 3;
    auto host_x = floats(rows * cols, 3);
    for (float& v : host_x) v += 2;
    const auto gamma = floats(cols);
    std::vector<double> want;
    for (std::int64_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (std::int64_t c = 0; c < cols; ++c) squares += std::pow(at(host_x, r * cols + c), 2);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(cols) + 1e-6);
      for (std::int64_t c = 0; c < cols; ++c) {
        want.push_back(at(host_x, r * cols + c) * scale * at(gamma, c));
      }
    }
    const Buffer x = upload(host_x);
    const Buffer g = upload(gamma);
    const Norm norm{g.as<float>(), nullptr, 1e-6f, false};
    for (const DType dtype : kDTypes) {
      SCOPED_TRACE(fmt::format("{} columns, {}", cols, name_of(dtype)));
      expect_near(run(want.size() * size_of(dtype),
                      [&](std::byte* y) {
                        ops->normalize(x.as<float>(), norm, rows, cols, y, dtype, *stream);
                      }),
                  dtype, want, 2e-6, 1e-6);
      // The same of a residual to which a product without a bias is added.
      const Buffer zeros = upload(std::vector<float>(host_x.size(), 0));
      const Buffer residual = upload(host_x);
      expect_near(run(want.size() * size_of(dtype),
                      [&](std::byte* y) {
                        ops->bias_residual_norm(zeros.as<float>(), cols, nullptr,
                                                residual.as<float>(), norm, rows, cols, y, dtype,
                                                *stream);
                      }),
                  dtype, want, 2e-6, 1e-6);
    }
  }
}

TEST_P(VariantsTest, ResidualsTakeProductsWithoutABias) {
  const std::int64_t rows = 3, cols = 36, ld = 40;
  const auto x = floats(rows * ld);
  const auto start = floats(rows * cols);
  const Buffer device_x = upload(x);
  std::vector<double> want;
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    want.push_back(at(start, i) + at(x, i / cols * ld + i % cols));
  }
  const auto got = run(want.size() * 4, [&](std::byte* y) {
    device->copy(y, start.data(), start.size() * 4, *stream);
    ops->bias_residual(device_x.as<float>(), ld, nullptr, rows, cols, reinterpret_cast<float*>(y),
                       *stream);
  });
  expect_near(got, DType::kFloat32, want, 1e-6, 1e-6);
}

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kGelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
  }
  return 0;
}

TEST_P(VariantsTest, ActivationsMatchTheReferenceWithAndWithoutAGateAndBiases) {
  for (const std::int64_t cols : {403, 64}) {
    const std::int64_t rows = 5, up = cols + 9 - cols % 2, ld = 2 * up;
    auto host_x = floats(rows * ld, 4);
    const std::vector<float> special = {0.0f, -0.0f, 1e-20f, -12, 12, -80, 80, -1e4f, 1e4f};
    std::copy(special.begin(), special.end(), host_x.begin());
    const auto bias = floats(cols);
    const auto up_bias = floats(cols);
    const Buffer x = upload(host_x);
    const Buffer b = upload(bias);
    const Buffer ub = upload(up_bias);
    for (const Activation activation :
         {Activation::kGelu, Activation::kGeluTanh, Activation::kRelu, Activation::kSilu}) {
      for (const bool biased : {false, true}) {
        for (const bool gated : {false, true}) {
          SCOPED_TRACE(fmt::format("{} biased {} gated {}", name_of(activation), biased, gated));
          const Activate activate{activation, biased ? b.as<float>() : nullptr, gated ? up : -1,
                                  biased && gated ? ub.as<float>() : nullptr};
          std::vector<double> want;
          for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t c = 0; c < cols; ++c) {
              const double v = at(host_x, r * ld + c) + (biased ? at(bias, c) : 0);
              const double u = at(host_x, r * ld + up + c) + (biased ? at(up_bias, c) : 0);
              want.push_back(activated(activation, v) * (gated ? u : 1));
            }
          }
          const auto got = run(want.size() * 4, [&](std::byte* y) {
            ops->activate(x.as<float>(), ld, activate, rows, cols, y, DType::kFloat32, *stream);
          });
          // erf and the sums of biases lose 2^-22 of values up to 16 times an `up` of 16.
          expect_near(got, DType::kFloat32, want, 4e-6, 2e-5);
        }
      }
    }
  }
}

TEST_P(VariantsTest, MatricesSideBySideAreTheirProductsSideBySide) {
  for (const DType dtype : kDTypes) {
    for (const auto& [first, second, third] : {std::tuple{64, 32, 32}, {33, 7, 7}, {130, 4, 12}}) {
      for (const int blocks : {1, 3}) {
        const std::int64_t cols = 72;
        std::vector<TestMatrix> parts;
        for (const std::int64_t rows : {first, second, third}) {
          parts.push_back(matrix(rows, blocks, cols, dtype));
        }
        const RowBlockMatrix matrices[] = {parts[0].device, parts[1].device, parts[2].device};
        for (const std::size_t count : {std::size_t{2}, std::size_t{3}}) {
          const Matrices w{std::span(matrices).first(count)};
          // For more rows a GPU has a kernel for several matrices, and cuBLAS for one.
          const std::int64_t most_rows = GetParam().exact ? 70 : 64;
          for (const std::int64_t rows :
               {std::int64_t{1}, std::int64_t{12}, std::int64_t{40}, most_rows}) {
            const Buffer a = upload(as(floats(rows * cols, 0.2f), dtype));
            const auto product = [&](const Matrices& of) {
              return run(static_cast<std::size_t>(rows * of.padded_rows()) * 4, [&](std::byte* y) {
                ops->matmul(a.data(), dtype, rows, of, reinterpret_cast<float*>(y), *stream);
              });
            };
            const auto all = product(w);
            for (std::size_t i = 0; i < count; ++i) {
              const auto one = product(matrices[i]);
              const auto row = static_cast<std::size_t>(matrices[i].padded_rows()) * 4;
              for (std::int64_t r = 0; r < rows; ++r) {
                const auto* in_all =
                    all.data() + static_cast<std::size_t>(r * w.padded_rows() + w.first(i)) * 4;
                ASSERT_EQ(std::memcmp(in_all, one.data() + static_cast<std::size_t>(r) * row, row),
                          0)
                    << name_of(dtype) << " matrix " << i << " row " << r << " of " << rows;
              }
            }
          }
        }
      }
    }
  }
}

TEST_P(VariantsTest, PositionsAreAddedAndRotationsMadeForEachRowsOwn) {
  const TestBatch b = batch({{3, 18}, {0, 7}, {1, 9000}, {2, 2}},
                            {{0, 1}, {2}, std::vector<std::int32_t>(563, 3), {4}});
  const std::vector<int> positions = {15, 16, 17, 8999, 0, 1};
  const std::int64_t cols = 20, first = 2;
  const auto table = floats(9010 * cols);
  const auto start = floats(6 * cols);
  const Buffer device_table = upload(table);
  std::vector<double> want;
  for (std::int64_t i = 0; i < 6 * cols; ++i) {
    const std::int64_t position = positions[static_cast<std::size_t>(i / cols)];
    want.push_back(at(start, i) + at(table, (first + position) * cols + i % cols));
  }
  const auto got = run(want.size() * 4, [&](std::byte* y) {
    device->copy(y, start.data(), start.size() * 4, *stream);
    ops->add_positions(device_table.as<float>(), first, b.device, cols, reinterpret_cast<float*>(y),
                       *stream);
  });
  expect_near(got, DType::kFloat32, want, 1e-6, 1e-6);

  const std::vector<float> frequencies = {1.0f, 0.31f, 1e-4f};
  const Buffer device_frequencies = upload(frequencies);
  std::vector<double> turns;
  for (const int position : positions) {
    for (const float f : frequencies) {
      const float angle = static_cast<float>(position) * f;  // in float32, like the reference
      turns.push_back(1.25 * std::cos(double{angle}));
      turns.push_back(1.25 * std::sin(double{angle}));
    }
  }
  const auto rotations = run(turns.size() * 4, [&](std::byte* y) {
    ops->rotations(device_frequencies.as<float>(), 3, 1.25f, b.device, reinterpret_cast<float*>(y),
                   *stream);
  });
  expect_near(rotations, DType::kFloat32, turns, 1e-6, 1e-6);
}

struct SplitCase {
  int heads, kv_heads, head_dim, rotary;
  bool biased, normed;
};

TEST_P(VariantsTest, SplitQkvNormsRotatesAndStoresEveryHead) {
  const std::vector<std::pair<int, int>> lengths = {{3, 18}, {0, 7}, {1, 1}, {30, 50}};
  const auto pages = shuffled_pages(lengths);
  const TestBatch b = batch(lengths, pages);
  const std::int64_t tokens = b.host.tokens;
  for (const SplitCase& c : {SplitCase{9, 3, 64, 64, false, false},
                             {8, 1, 128, 128, true, false},
                             {5, 5, 80, 80, false, true},
                             {4, 2, 20, 12, true, true},
                             {3, 3, 24, 0, true, false},
                             {2, 1, 256, 256, false, true}}) {
    SCOPED_TRACE(fmt::format("{}x{}x{}, {} rotated", c.heads, c.kv_heads, c.head_dim, c.rotary));
    const std::int64_t d = c.head_dim;
    const std::int64_t k_first = c.heads * d + 3, v_first = k_first + c.kv_heads * d + 5;
    const std::int64_t ld = v_first + c.kv_heads * d + 1;
    const auto qkv = floats(tokens * ld);
    const auto bias = floats((c.heads + 2 * c.kv_heads) * d);
    const auto q_norm = floats(d), k_norm = floats(d);
    const auto turns = floats(tokens * c.rotary);
    const Buffer device_qkv = upload(qkv), device_bias = upload(bias), qn = upload(q_norm),
                 kn = upload(k_norm), device_turns = upload(turns);
    const auto bias_at = [&](std::int64_t first) {
      return c.biased ? device_bias.as<float>() + first : nullptr;
    };
    const QkvSplit split{.q = {0, d, bias_at(0)},
                         .k = {k_first, d, bias_at(c.heads * d)},
                         .v = {v_first, d, bias_at((c.heads + c.kv_heads) * d)},
                         .heads = c.heads,
                         .q_norm = c.normed ? qn.as<float>() : nullptr,
                         .k_norm = c.normed ? kn.as<float>() : nullptr,
                         .norm_epsilon = 1e-6f,
                         .rotations = c.rotary > 0 ? device_turns.as<float>() : nullptr,
                         .rotary = c.rotary};
    KvLayer kv{nullptr, DType::kFloat32, c.kv_heads, c.head_dim};
    std::size_t page_count = 1;
    for (const auto& list : pages) page_count += list.size();
    std::vector<std::byte> q;
    const auto stored = run(page_count * kv.page_bytes(), [&](std::byte* data) {
      kv.data = data;
      q = run(static_cast<std::size_t>(tokens * c.heads * d) * 4, [&](std::byte* out) {
        ops->split_qkv(device_qkv.as<float>(), ld, split, b.device, kv,
                       reinterpret_cast<float*>(out), *stream);
      });
    });

    const auto head_of = [&](std::int64_t row, std::int64_t first, std::int64_t bias_first,
                             const std::vector<float>* norm, bool rotated) {
      std::vector<double> x;
      double squares = 0;
      for (std::int64_t i = 0; i < d; ++i) {
        x.push_back(at(qkv, row * ld + first + i) + (c.biased ? at(bias, bias_first + i) : 0));
        squares += x.back() * x.back();
      }
      if (norm != nullptr && c.normed) {
        const double scale = 1 / std::sqrt(squares / static_cast<double>(d) + 1e-6);
        for (std::int64_t i = 0; i < d; ++i) x[static_cast<std::size_t>(i)] *= scale * at(*norm, i);
      }
      const std::vector<double> before = x;
      for (std::int64_t i = 0; rotated && i < c.rotary / 2; ++i) {
        const double cosine = at(turns, row * c.rotary + 2 * i);
        const double sine = at(turns, row * c.rotary + 2 * i + 1);
        const auto lower = static_cast<std::size_t>(i);
        const auto upper = static_cast<std::size_t>(i + c.rotary / 2);
        x[lower] = before[lower] * cosine - before[upper] * sine;
        x[upper] = before[upper] * cosine + before[lower] * sine;
      }
      return x;
    };
    std::vector<double> want_q;
    std::vector<double> want =
        test::to_doubles(std::vector<std::byte>(stored.size(), kGuard).data(), DType::kFloat32,
                         static_cast<std::int64_t>(stored.size() / 4));
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      for (int row = b.row_begin[s]; row < b.row_begin[s + 1]; ++row) {
        const int position = b.context[s] - b.row_begin[s + 1] + row;
        const auto page =
            static_cast<std::size_t>(pages[s][static_cast<std::size_t>(position / 16)]);
        for (int h = 0; h < c.heads; ++h) {
          const auto x = head_of(row, h * d, h * d, &q_norm, true);
          want_q.insert(want_q.end(), x.begin(), x.end());
        }
        for (int h = 0; h < c.kv_heads; ++h) {
          const std::size_t element =
              page * kv.page_bytes() / 4 + static_cast<std::size_t>((h * 16 + position % 16) * d);
          const auto k = head_of(row, k_first + h * d, (c.heads + h) * d, &k_norm, true);
          const auto v =
              head_of(row, v_first + h * d, (c.heads + c.kv_heads + h) * d, nullptr, false);
          std::copy(k.begin(), k.end(), want.begin() + static_cast<std::ptrdiff_t>(element));
          std::copy(v.begin(), v.end(),
                    want.begin() + static_cast<std::ptrdiff_t>(element + kv.page_bytes() / 8));
        }
      }
    }
    expect_near(q, DType::kFloat32, want_q, 4e-6, 4e-6);
    expect_near(stored, DType::kFloat32, want, 4e-6, 4e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, VariantsTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace zi
