#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "ops_inputs.h"

/// Products together with what is done with their sums, and the same done one after the other: no
/// bit may differ, but for the rounding of sums of many rows. The CUDA backend does them in one
/// kernel for some rows, types and places; the CPU backend one after the other, so that a few cases
/// of each do for it.
namespace zi {
namespace {

struct FusedTest : OpsInputsTest {
  Buffer scratch(std::int64_t rows, const TestMatrix& m) {
    return device->allocate(static_cast<std::size_t>(rows * m.device.padded_rows()) * 4);
  }

  /// Of results in `type`. Those of many rows may have been rounded to `rounded` before they were
  /// used; sums are up to the largest result's size.
  void match(const std::vector<std::byte>& fused, const std::vector<std::byte>& apart, DType type,
             std::int64_t rows, DType rounded) {
    if (GetParam().exact || rows <= 128 || rounded == DType::kFloat32) {
      ASSERT_EQ(fused, apart);
      return;
    }
    ASSERT_EQ(fused.size(), apart.size());
    const auto count = static_cast<std::int64_t>(fused.size() / size_of(type));
    const auto got = test::to_doubles(fused.data(), type, count);
    const auto want = test::to_doubles(apart.data(), type, count);
    double largest = 0;
    for (const double w : want) largest = std::max(largest, std::abs(w));
    const double unit = rounded == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], want[i], 3 * unit * (std::abs(want[i]) + largest / 4)) << i;
    }
  }

  /// The last `padding` rows of the matrix are those of its last blocks.
  void match_activate(std::int64_t rows, TestMatrix& m, std::int64_t padding, DType a_dtype,
                      DType y_dtype, Activation activation = Activation::kGeluTanh,
                      bool biased = true) {
    m.device.rows = m.device.padded_rows() - padding;
    SCOPED_TRACE(fmt::format("{} of {} {} rows, {} ({}, {}) to {}", name_of(activation), rows,
                             name_of(a_dtype), describe(m.device.format), m.device.rows,
                             m.device.cols, name_of(y_dtype)));
    const Buffer a = upload(as(floats(rows * m.device.cols, 0.2f), a_dtype));
    const Buffer bias = upload(floats(m.device.rows));
    const Activate activate{activation, biased ? bias.as<float>() : nullptr};
    const Buffer product = scratch(rows, m);
    const auto bytes = static_cast<std::size_t>(rows * m.device.rows) * size_of(y_dtype);
    const auto fused = run(bytes, [&](std::byte* y) {
      ops->matmul_activate(a.data(), a_dtype, rows, m.device, activate, product.as<float>(), y,
                           y_dtype, *stream);
    });
    const auto apart = run(bytes, [&](std::byte* y) {
      ops->matmul(a.data(), a_dtype, rows, m.device, product.as<float>(), *stream);
      ops->activate(product.as<float>(), m.device.padded_rows(), activate, rows, m.device.rows, y,
                    y_dtype, *stream);
    });
    match(fused, apart, y_dtype, rows, a_dtype);
  }

  /// The same of a gate and the matrix that it opens.
  void match_gate(std::int64_t rows, TestMatrix& gate, TestMatrix& up, std::int64_t padding,
                  DType y_dtype, Activation activation = Activation::kSilu, bool biased = true) {
    const DType dtype = gate.device.format.dtype;  // of the inputs; where weights are packed, too
    RowBlockMatrix both[] = {gate.device, up.device};
    for (RowBlockMatrix& m : both) m.rows = m.padded_rows() - padding;
    const Matrices w{std::span<const RowBlockMatrix>(both)};
    const std::int64_t cols = w[0].rows;
    SCOPED_TRACE(
        fmt::format("{} of {} rows, two of ({}, {})", name_of(activation), rows, cols, w.cols()));
    const Buffer a = upload(as(floats(rows * w.cols(), 0.2f), dtype));
    const Buffer bias = upload(floats(cols)), up_bias = upload(floats(cols));
    const Activate activate{activation, biased ? bias.as<float>() : nullptr, w.first(1),
                            biased ? up_bias.as<float>() : nullptr};
    const Buffer product = device->allocate(static_cast<std::size_t>(rows * w.padded_rows()) * 4);
    const auto bytes = static_cast<std::size_t>(rows * cols) * size_of(y_dtype);
    const auto fused = run(bytes, [&](std::byte* y) {
      ops->matmul_activate(a.data(), dtype, rows, w, activate, product.as<float>(), y, y_dtype,
                           *stream);
    });
    const auto apart = run(bytes, [&](std::byte* y) {
      ops->matmul(a.data(), dtype, rows, w, product.as<float>(), *stream);
      ops->activate(product.as<float>(), w.padded_rows(), activate, rows, cols, y, y_dtype,
                    *stream);
    });
    match(fused, apart, y_dtype, rows, dtype);
  }

  /// Any pages that no sequence has stay as they were.
  void match_qkv(const std::vector<std::pair<int, int>>& lengths, int heads, int head_dim,
                 std::int64_t cols, int blocks, DType dtype, DType kv_dtype, bool biased = true,
                 std::optional<WeightFormat> packed = {}) {
    SCOPED_TRACE(fmt::format("qkv of {} sequences, {} heads of {}, {} cols in {} blocks, {} {}",
                             lengths.size(), heads, head_dim, cols, blocks, name_of(dtype),
                             name_of(kv_dtype)));
    const auto pages = shuffled_pages(lengths);
    std::size_t page_count = 1;
    for (const auto& list : pages) page_count += list.size();
    const TestBatch b = batch(lengths, pages);
    const std::int64_t out = std::int64_t{3} * heads * head_dim;
    TestMatrix m = matrix(ceil_div(out, blocks), blocks, cols, packed.value_or(dtype));
    m.device.rows = out;
    KvLayer kv{nullptr, kv_dtype, heads, head_dim};
    const Buffer a = upload(as(floats(b.host.tokens * cols, 0.2f), dtype));
    const Buffer bias = upload(floats(out));
    const float* const given = biased ? bias.as<float>() : nullptr;
    const Buffer product = scratch(b.host.tokens, m);
    const auto q_bytes = static_cast<std::size_t>(b.host.tokens * heads * head_dim) * 4;
    const auto both = [&](const auto& work) {
      std::vector<std::byte> q;
      const auto kv_bytes = run(page_count * kv.page_bytes(), [&](std::byte* data) {
        kv.data = data;
        q = run(q_bytes, [&](std::byte* to) { work(reinterpret_cast<float*>(to)); });
      });
      return std::pair{q, kv_bytes};
    };
    const auto fused = both([&](float* q) {
      ops->matmul_qkv(a.data(), dtype, m.device, interleaved(kv, given), b.device, kv,
                      product.as<float>(), q, *stream);
    });
    const auto apart = both([&](float* q) {
      ops->matmul(a.data(), dtype, b.host.tokens, m.device, product.as<float>(), *stream);
      ops->split_qkv(product.as<float>(), m.device.padded_rows(), interleaved(kv, given), b.device,
                     kv, q, *stream);
    });
    match(fused.first, apart.first, DType::kFloat32, b.host.tokens, dtype);
    match(fused.second, apart.second, kv_dtype, b.host.tokens, dtype);
  }
};

TEST_P(FusedTest, GeluEqualsProductAndGelu) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    // (cols, rows of a block, blocks, padding): whole fours and not, columns shared by a cluster
    // of blocks and not, tiles of every size (the last has more than a device runs blocks at once).
    for (const auto& [cols, block_rows, blocks, padding] : {std::tuple{64, 64, 1, 0},
                                                            {8, 33, 1, 0},
                                                            {1288, 107, 4, 3},
                                                            {2056, 108, 2, 4},
                                                            {520, 300, 3, 1},
                                                            {1288, 1100, 2, 3},
                                                            {72, 34000, 1, 0}}) {
      TestMatrix m = matrix(block_rows, blocks, cols, dtype);
      for (const std::int64_t rows : {0, 1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129}) {
        if (GetParam().exact && (rows != 9 || block_rows > 300)) continue;
        match_activate(rows, m, padding, dtype, dtype);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(FusedTest, EveryActivationEqualsProductAndActivation) {
  TestMatrix m = matrix(108, 2, 264, DType::kBFloat16);
  for (const Activation activation :
       {Activation::kGelu, Activation::kGeluTanh, Activation::kRelu, Activation::kSilu}) {
    for (const bool biased : {true, false}) {
      for (const std::int64_t rows : {1, 13, 40, 70}) {
        match_activate(rows, m, 4, DType::kBFloat16, DType::kBFloat16, activation, biased);
        match_activate(rows, m, 3, DType::kBFloat16, DType::kBFloat16, activation, biased);
      }
    }
  }
}

TEST_P(FusedTest, ManyRowsAreRoundedWhereverTheyMayBe) {
  // Whole tiles and not, row blocks with and without padding, packed weights in pieces.
  for (const auto& [block_rows, blocks, padding] :
       {std::tuple{512, 1, 0}, {256, 2, 0}, {136, 3, 5}, {99, 2, 0}}) {
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      for (const WeightFormat& format : {WeightFormat(dtype), kInt8Weights}) {
        TestMatrix m = matrix(block_rows, blocks, 256, format);
        TestMatrix up = matrix(block_rows, blocks, 256, format);
        for (const std::int64_t rows : {129, 400}) {
          if (GetParam().exact && (rows > 129 || blocks != 3)) continue;
          for (const bool biased : {true, false}) {
            match_activate(rows, m, padding, dtype, dtype, Activation::kGeluTanh, biased);
            match_activate(rows, m, padding, dtype, dtype, Activation::kRelu, biased);
            match_activate(rows, m, padding, dtype, dtype, Activation::kGelu, biased);
            if (format.packed()) continue;
            match_gate(rows, m, up, padding, dtype, Activation::kSilu, biased);
          }
          match_activate(rows, m, padding, dtype, DType::kFloat32);
          if (HasFatalFailure()) return;
        }
      }
      match_qkv({{150, 170}, {0, 7}, {1, 1}}, 2, 64, 128, blocks, dtype, dtype);
      match_qkv({{150, 170}, {0, 7}, {1, 1}}, 3, 20, 136, blocks, dtype, dtype, false);
    }
  }
}

TEST_P(FusedTest, NaNStaysNaNInManyRows) {
  constexpr std::int64_t kRows = 160, kCols = 64;
  TestMatrix m = matrix(128, 1, kCols, DType::kBFloat16);
  auto values = floats(kRows * kCols, 0.2f);
  values[3 * kCols] = std::numeric_limits<float>::quiet_NaN();
  const Buffer a = upload(as(values, DType::kBFloat16));
  const Buffer product = scratch(kRows, m);
  for (const Activation activation : {Activation::kGeluTanh, Activation::kRelu}) {
    const auto got = run(kRows * 128 * 2, [&](std::byte* y) {
      ops->matmul_activate(a.data(), DType::kBFloat16, kRows, m.device, {activation},
                           product.as<float>(), y, DType::kBFloat16, *stream);
    });
    const auto y = test::to_doubles(got.data(), DType::kBFloat16, kRows * 128);
    for (std::size_t i = 0; i < y.size(); ++i) {
      ASSERT_EQ(std::isnan(y[i]), i / 128 == 3) << name_of(activation) << " at " << i;
    }
  }
}

TEST_P(FusedTest, GeluTakesEveryType) {
  for (const WeightFormat& w : {WeightFormat(DType::kFloat32), WeightFormat(DType::kBFloat16),
                                WeightFormat(DType::kFloat16), kInt8Weights, kInt4Weights}) {
    TestMatrix m = matrix(20, 2, 40, w);
    for (const DType a : kDTypes) {
      for (const DType y : kDTypes) match_activate(3, m, 1, a, y);
    }
  }
}

TEST_P(FusedTest, AGateEqualsProductAndGate) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    // As for GELU: whole fours and not, columns shared by a cluster of blocks and not.
    for (const auto& [cols, block_rows, blocks, padding] : {std::tuple{72, 20, 2, 3},
                                                            {8, 33, 1, 0},
                                                            {1288, 107, 4, 3},
                                                            {2056, 108, 2, 4},
                                                            {520, 300, 3, 1},
                                                            {1288, 600, 2, 3},
                                                            {72, 17000, 1, 0}}) {
      TestMatrix gate = matrix(block_rows, blocks, cols, dtype);
      TestMatrix up = matrix(block_rows, blocks, cols, dtype);
      for (const std::int64_t rows : {0, 1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129}) {
        if (GetParam().exact && (rows != 9 || block_rows > 300)) continue;
        match_gate(rows, gate, up, padding, dtype);
        if (HasFatalFailure()) return;
      }
    }
  }
  TestMatrix gate = matrix(40, 2, 72, DType::kBFloat16), up = matrix(40, 2, 72, DType::kBFloat16);
  for (const std::int64_t rows : {5, 40}) {
    for (const Activation activation : {Activation::kGelu, Activation::kRelu, Activation::kSilu}) {
      match_gate(rows, gate, up, 0, DType::kBFloat16, activation, false);
    }
    match_gate(rows, gate, up, 0, DType::kFloat32);
  }
}

TEST_P(FusedTest, PackedWeightsAreFusedAsOthersAre) {
  std::vector<std::pair<int, int>> lengths;
  for (int s = 0; s < 9; ++s) lengths.emplace_back(1, 1 + s * 7 % 40);
  using Kind = WeightFormat::Kind;
  for (const WeightFormat& format :
       {kInt8Weights, kInt4Weights, WeightFormat{Kind::kInt4, ScaleType::kFloat16, 128},
        WeightFormat{Kind::kInt8, ScaleType::kBFloat16, 0},
        WeightFormat{Kind::kFloat8, ScaleType::kFloat32, 128}}) {
    // Whole fours and not, odd columns, columns shared by a cluster of blocks.
    for (const auto& [cols, block_rows, blocks, padding] :
         {std::tuple{72, 20, 2, 3}, {33, 33, 1, 0}, {1288, 107, 4, 3}, {520, 300, 3, 1}}) {
      if (GetParam().exact && cols > 72) continue;
      TestMatrix gate = matrix(block_rows, blocks, cols, format);
      TestMatrix up = matrix(block_rows, blocks, cols, format);
      for (const std::int64_t rows : {0, 1, 9, 16, 33, 65}) {
        if (GetParam().exact && rows != 9) continue;
        match_activate(rows, gate, padding, DType::kBFloat16, DType::kBFloat16);
        for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
          match_gate(rows, gate, up, padding, dtype);
        }
        if (HasFatalFailure()) return;
      }
    }
    for (const auto& [head_dim, cols] : {std::pair{20, 64}, {5, 33}}) {
      match_qkv(lengths, 2, head_dim, cols, 2, DType::kBFloat16, DType::kBFloat16, true, format);
      match_qkv({{3, 18}, {0, 7}, {12, 50}}, 2, head_dim, cols, 1, DType::kBFloat16,
                DType::kFloat16, false, format);
    }
  }
}

TEST_P(FusedTest, QkvEqualsProductAndSplit) {
  for (const int sequences : {1, 8, 9, 16, 17, 33, 64, 65}) {
    if (GetParam().exact && sequences != 9) continue;
    std::vector<std::pair<int, int>> lengths;
    for (int s = 0; s < sequences; ++s) lengths.emplace_back(1, 1 + s * 7 % 40);
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      match_qkv(lengths, 2, 20, 64, 1, dtype, dtype);
      match_qkv(lengths, 2, 20, 64, 1, dtype, dtype, false);
      match_qkv(lengths, 3, 5, 72, 4, dtype, dtype);      // odd rows, and padding
      match_qkv(lengths, 9, 128, 1032, 4, dtype, dtype);  // columns shared by a cluster
      if (HasFatalFailure()) return;
    }
  }
  match_qkv({{1, 1}, {1, 20}}, 90, 128, 72, 1, DType::kBFloat16, DType::kBFloat16);  // many tiles
}

TEST_P(FusedTest, QkvTakesAnyRowsOfASequenceAndEveryType) {
  for (const auto& lengths : std::vector<std::vector<std::pair<int, int>>>{
           {{3, 18}, {0, 7}, {1, 1}, {12, 50}},
           {{2, 18}, {0, 7}, {1, 1}},  // as many rows as sequences
           {{1, 18}, {0, 7}, {1, 1}},
           {{0, 7}}}) {
    for (const DType dtype : kDTypes) {
      for (const DType kv : kDTypes) match_qkv(lengths, 2, 24, 48, 2, dtype, kv);
    }
  }
}

TEST_P(FusedTest, AChainOfOpsNeedsNoWaitBetweenThem) {
  // Blocks of a model one after the other, as a GPU overlaps them: columns are shared by clusters
  // of blocks, keys of earlier positions stand in the pages.
  constexpr int kHeads = 9, kHeadDim = 128;
  constexpr std::int64_t kHidden = kHeads * kHeadDim, kFfn = 4 * kHidden;
  constexpr DType kType = DType::kBFloat16;
  const TestMatrix qkv = matrix(3 * kHidden, 1, kHidden, kType);
  const TestMatrix dense = matrix(kHidden, 1, kHidden, kType);
  const TestMatrix up = matrix(kFfn / 2, 2, kHidden, kType);
  const TestMatrix down = matrix(kHidden, 1, kFfn, kType);
  const Buffer gamma = upload(floats(kHidden, 0.1f));
  const Buffer beta = upload(floats(kHidden, 0.1f));
  const Buffer bias = upload(floats(kFfn, 0.1f));
  const Buffer slopes = upload(std::vector<float>(kHeads, 0.25f));
  for (const int sequences : {3, 16, 40, 64}) {
    if (GetParam().exact && sequences != 3) continue;
    std::vector<std::pair<int, int>> lengths;
    for (int s = 0; s < sequences; ++s) lengths.emplace_back(1, 1 + s * 7 % 40);
    const auto pages = shuffled_pages(lengths);
    std::size_t page_count = 1;
    for (const auto& list : pages) page_count += list.size();
    const TestBatch b = batch(lengths, pages);
    KvLayer kv{nullptr, kType, kHeads, kHeadDim};
    const std::int64_t rows = sequences;
    const auto start = floats(rows * kHidden);
    const auto keys =
        as(floats(static_cast<std::int64_t>(page_count * kv.page_bytes() / 2)), kType);
    const auto run_chain = [&](bool wait) {
      Buffer pages_memory = upload(keys);
      kv.data = pages_memory.data();
      const Buffer x = upload(start);
      const auto floats_of = [&](std::int64_t cols) {
        return device->allocate(static_cast<std::size_t>(rows * cols) * 4);
      };
      const Buffer normed = floats_of(kHidden), product = floats_of(kFfn), q = floats_of(kHidden),
                   ffn = floats_of(kFfn);
      const auto next = [&] {
        if (wait) stream->synchronize();
      };
      const Norm norm{gamma.as<float>(), beta.as<float>()};
      ops->normalize(x.as<float>(), norm, rows, kHidden, normed.data(), kType, *stream);
      for (int block = 0; block < 4; ++block) {
        next();
        ops->matmul_qkv(normed.data(), kType, qkv.device, interleaved(kv, bias.as<float>()),
                        b.device, kv, product.as<float>(), q.as<float>(), *stream);
        next();
        ops->attention(q.as<float>(), kHeads, b.device, kv, slopes.as<float>(), normed.data(),
                       kType, *stream);
        next();
        ops->matmul(normed.data(), kType, rows, dense.device, product.as<float>(), *stream);
        next();
        ops->bias_residual_norm(product.as<float>(), kHidden, bias.as<float>(), x.as<float>(), norm,
                                rows, kHidden, normed.data(), kType, *stream);
        next();
        ops->matmul_activate(normed.data(), kType, rows, up.device,
                             {Activation::kGeluTanh, bias.as<float>()}, product.as<float>(),
                             ffn.data(), kType, *stream);
        next();
        ops->matmul(ffn.data(), kType, rows, down.device, product.as<float>(), *stream);
        next();
        ops->bias_residual_norm(product.as<float>(), kHidden, bias.as<float>(), x.as<float>(), norm,
                                rows, kHidden, normed.data(), kType, *stream);
      }
      std::vector<float> result(start.size());
      device->copy(result.data(), x.data(), result.size() * sizeof(float), *stream);
      stream->synchronize();
      return result;
    };
    const auto apart = run_chain(true);
    const int repeats = GetParam().exact ? 1 : 5;
    for (int repeat = 0; repeat < repeats; ++repeat)
      ASSERT_EQ(run_chain(false), apart) << sequences;
  }
}

TEST_P(FusedTest, AChainOfGroupedAndGatedOpsNeedsNoWaitBetweenThem) {
  constexpr int kHeads = 8, kKvHeads = 2, kHeadDim = 128;
  constexpr std::int64_t kHidden = kHeads * kHeadDim, kKv = kKvHeads * kHeadDim, kFfn = 3 * kHidden;
  constexpr DType kType = DType::kBFloat16;
  const TestMatrix q_matrix = matrix(kHidden, 1, kHidden, kType);
  const TestMatrix k_matrix = matrix(kKv, 1, kHidden, kType),
                   v_matrix = matrix(kKv, 1, kHidden, kType);
  const TestMatrix dense = matrix(kHidden, 1, kHidden, kType);
  const TestMatrix gate = matrix(kFfn, 1, kHidden, kType), up = matrix(kFfn, 1, kHidden, kType);
  const TestMatrix down = matrix(kHidden, 1, kFfn, kType);
  const RowBlockMatrix qkv_parts[] = {q_matrix.device, k_matrix.device, v_matrix.device};
  const RowBlockMatrix up_parts[] = {gate.device, up.device};
  const Matrices qkv{std::span<const RowBlockMatrix>(qkv_parts)};
  const Matrices both{std::span<const RowBlockMatrix>(up_parts)};
  const Buffer gamma = upload(floats(kHidden, 0.1f));
  const Buffer frequencies = upload(std::vector<float>(kHeadDim / 2, 0.3f));
  const Norm norm{gamma.as<float>(), nullptr, 1e-5f, false};
  for (const int sequences : {3, 16, 40, 64}) {
    if (GetParam().exact && sequences != 3) continue;
    std::vector<std::pair<int, int>> lengths;
    for (int s = 0; s < sequences; ++s) lengths.emplace_back(1, 1 + s * 7 % 600);
    const auto pages = shuffled_pages(lengths);
    std::size_t page_count = 1;
    for (const auto& list : pages) page_count += list.size();
    const TestBatch b = batch(lengths, pages);
    KvLayer kv{nullptr, kType, kKvHeads, kHeadDim};
    const std::int64_t rows = sequences;
    const auto start = floats(rows * kHidden);
    const auto keys =
        as(floats(static_cast<std::int64_t>(page_count * kv.page_bytes() / 2)), kType);
    const auto run_chain = [&](bool wait) {
      Buffer pages_memory = upload(keys);
      kv.data = pages_memory.data();
      const Buffer x = upload(start);
      const auto floats_of = [&](std::int64_t cols) {
        return device->allocate(static_cast<std::size_t>(rows * cols) * 4);
      };
      const Buffer normed = floats_of(kHidden), product = floats_of(2 * kFfn),
                   q = floats_of(kHidden), ffn = floats_of(kFfn), turns = floats_of(kHeadDim);
      const QkvSplit split{.q = {qkv.first(0), kHeadDim},
                           .k = {qkv.first(1), kHeadDim},
                           .v = {qkv.first(2), kHeadDim},
                           .heads = kHeads,
                           .rotations = turns.as<float>(),
                           .rotary = kHeadDim};
      const auto next = [&] {
        if (wait) stream->synchronize();
      };
      ops->rotations(frequencies.as<float>(), kHeadDim / 2, 1, b.device, turns.as<float>(),
                     *stream);
      ops->normalize(x.as<float>(), norm, rows, kHidden, normed.data(), kType, *stream);
      for (int block = 0; block < 4; ++block) {
        next();
        ops->matmul_qkv(normed.data(), kType, qkv, split, b.device, kv, product.as<float>(),
                        q.as<float>(), *stream);
        next();
        ops->attention(q.as<float>(), kHeads, b.device, kv, nullptr, normed.data(), kType, *stream);
        next();
        ops->matmul(normed.data(), kType, rows, dense.device, product.as<float>(), *stream);
        next();
        ops->bias_residual_norm(product.as<float>(), kHidden, nullptr, x.as<float>(), norm, rows,
                                kHidden, normed.data(), kType, *stream);
        next();
        ops->matmul_activate(normed.data(), kType, rows, both,
                             {Activation::kSilu, nullptr, both.first(1)}, product.as<float>(),
                             ffn.data(), kType, *stream);
        next();
        ops->matmul(ffn.data(), kType, rows, down.device, product.as<float>(), *stream);
        next();
        ops->bias_residual_norm(product.as<float>(), kHidden, nullptr, x.as<float>(), norm, rows,
                                kHidden, normed.data(), kType, *stream);
      }
      std::vector<float> result(start.size());
      device->copy(result.data(), x.data(), result.size() * sizeof(float), *stream);
      stream->synchronize();
      return result;
    };
    const auto apart = run_chain(true);
    const int repeats = GetParam().exact ? 1 : 5;
    for (int repeat = 0; repeat < repeats; ++repeat)
      ASSERT_EQ(run_chain(false), apart) << sequences;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, FusedTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace zi
