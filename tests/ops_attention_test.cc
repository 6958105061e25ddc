#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "ops_fixture.h"

namespace zi {
namespace {

/// Sequences with their pages in shuffled order, on the device.
struct TestBatch {
  std::vector<std::int32_t> row_begin{0};
  std::vector<std::int32_t> context;
  std::vector<std::int32_t> tables;
  Buffer device_row_begin, device_context, device_tables;
  RaggedBatch device;
  RaggedBatch host;
};

struct AttentionTest : OpsTest {
  /// `lengths[s]` = {rows in this pass, keys after it}; `pages[s]` the pages of each sequence.
  TestBatch batch(const std::vector<std::pair<int, int>>& lengths,
                  const std::vector<std::vector<std::int32_t>>& pages) {
    TestBatch b;
    std::size_t most = 1;
    for (const auto& list : pages) most = std::max(most, list.size());
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      b.row_begin.push_back(b.row_begin.back() + lengths[s].first);
      b.context.push_back(lengths[s].second);
      auto list = pages[s];
      list.resize(most, -1);
      b.tables.insert(b.tables.end(), list.begin(), list.end());
    }
    b.device_row_begin = upload(b.row_begin);
    b.device_context = upload(b.context);
    b.device_tables = upload(b.tables);
    b.host = {
        b.row_begin.back(), static_cast<int>(lengths.size()), b.row_begin.data(), b.context.data(),
        b.tables.data(),    static_cast<int>(most),           b.row_begin,        b.context};
    b.device = b.host;
    b.device.row_begin = b.device_row_begin.as<std::int32_t>();
    b.device.context = b.device_context.as<std::int32_t>();
    b.device.block_tables = b.device_tables.as<std::int32_t>();
    return b;
  }
};

TEST_P(AttentionTest, MatchesTheReference) {
  const std::vector<std::pair<int, int>> lengths = {{1, 1}, {1, 33}, {40, 40}, {5, 50}, {0, 0}};
  const std::vector<std::vector<std::int32_t>> pages = {
      {3}, {7, 0, 11}, {1, 9, 4}, {2, 12, 5, 8}, {}};
  const TestBatch b = batch(lengths, pages);
  for (const int head_dim : {64, 16, 80, 5, 256}) {
    for (const DType dtype : kDTypes) {
      SCOPED_TRACE(fmt::format("head_dim {} {}", head_dim, name_of(dtype)));
      KvLayer kv{nullptr, dtype, 3, head_dim};
      // Slots that no sequence has written hold NaN.
      std::vector<std::byte> host_kv(13 * kv.page_bytes(), std::byte{0xff});
      const std::size_t half = kv.page_bytes() / 2;
      for (std::size_t s = 0; s < lengths.size(); ++s) {
        for (int p = 0; p < lengths[s].second; ++p) {
          const auto page = static_cast<std::size_t>(pages[s][static_cast<std::size_t>(p / 16)]);
          for (std::size_t h = 0; h < 3; ++h) {
            const std::size_t at =
                page * kv.page_bytes() + (h * 16 + static_cast<std::size_t>(p % 16)) *
                                             static_cast<std::size_t>(head_dim) * size_of(dtype);
            for (const std::size_t part : {std::size_t{0}, half}) {
              const auto row = as(floats(head_dim), dtype);
              std::memcpy(host_kv.data() + at + part, row.data(), row.size());
            }
          }
        }
      }
      const Buffer device_kv = upload(host_kv);
      const auto host_q = floats(b.host.tokens * 3 * head_dim, 2);
      const Buffer q = upload(host_q);
      const std::vector<float> slopes = {0.5f, 0.0625f, 0.00390625f};
      const Buffer device_slopes = upload(slopes);
      kv.data = host_kv.data();
      const auto want = test::attention(host_q.data(), b.host, kv, slopes.data());
      const auto plain = test::attention(host_q.data(), b.host, kv, nullptr);
      kv.data = device_kv.data();
      for (const bool alibi : {true, false}) {
        const auto got = run(want.size() * size_of(dtype), [&](std::byte* out) {
          ops->attention(q.as<float>(), b.device, kv, alibi ? device_slopes.as<float>() : nullptr,
                         out, dtype, *stream);
        });
        // Scores up to 50 carry 50 * 2^-23 into the exponent: 1e-5 of values of about 1.
        expect_near(got, dtype, alibi ? want : plain, 1e-5, 2e-5);
      }
    }
  }
}

TEST_P(AttentionTest, SplitQkvFillsQAndThePagesOfEachPosition) {
  const int heads = 2;
  const int head_dim = 20;
  const std::int64_t ld = 3 * heads * head_dim + 4;
  const TestBatch b = batch({{3, 18}, {1, 1}}, {{2, 0}, {1}});
  const auto host_qkv = floats(4 * ld);
  const auto bias = floats(3 * heads * head_dim);
  const Buffer qkv = upload(host_qkv);
  const Buffer device_bias = upload(bias);
  for (const DType dtype : kDTypes) {
    KvLayer kv{nullptr, dtype, heads, head_dim};
    std::vector<std::byte> q;
    const auto pages = run(3 * kv.page_bytes(), [&](std::byte* data) {
      kv.data = data;
      q = run(4 * heads * head_dim * 4, [&](std::byte* out) {
        ops->split_qkv(qkv.as<float>(), ld, device_bias.as<float>(), b.device, kv,
                       reinterpret_cast<float*>(out), *stream);
      });
    });
    const int page_of_row[] = {2, 0, 0, 1};
    const int slot_of_row[] = {15, 0, 1, 0};
    std::vector<std::byte> want(pages.size(), kGuard);  // all other slots stay as they were
    for (std::size_t r = 0; r < 4; ++r) {
      for (std::size_t h = 0; h < 2; ++h) {
        for (std::size_t part = 0; part < 3; ++part) {
          for (std::size_t d = 0; d < 20; ++d) {
            const std::size_t column = (h * 3 + part) * 20 + d;
            const float sum = host_qkv[r * static_cast<std::size_t>(ld) + column] + bias[column];
            if (part == 0) {
              EXPECT_EQ(reinterpret_cast<const float*>(q.data())[r * 40 + h * 20 + d], sum);
              continue;
            }
            const std::size_t element =
                (h * 16 + static_cast<std::size_t>(slot_of_row[r])) * 20 + d;
            const std::size_t at = static_cast<std::size_t>(page_of_row[r]) * kv.page_bytes() +
                                   (part == 2 ? kv.page_bytes() / 2 : 0) + element * size_of(dtype);
            convert(&sum, DType::kFloat32, want.data() + at, dtype, 1);
          }
        }
      }
    }
    EXPECT_EQ(pages, want);
  }
}

TEST_P(AttentionTest, RowsHaveTheSameBitsInEveryBatchAndChunk) {
  if (!GetParam().exact) GTEST_SKIP() << "this backend promises equality within rounding only";
  const int heads = 2;
  const int head_dim = 24;
  const std::int64_t hidden = heads * head_dim;
  const int keys = 75;
  const KvLayer empty{nullptr, DType::kBFloat16, heads, head_dim};
  const auto host_qkv = floats(keys * 3 * hidden);
  const auto bias = floats(3 * hidden);
  const Buffer device_bias = upload(bias);
  const Buffer slopes = upload(std::vector<float>{0.5f, 0.1f});
  const std::size_t row_bytes = static_cast<std::size_t>(hidden) * 4;

  // A prompt in chunks, beside a decoding neighbour (or not), on other pages.
  const auto prefill = [&](const std::vector<int>& chunks, bool neighbour) {
    Buffer pages = upload(std::vector<std::byte>(12 * empty.page_bytes(), std::byte{0xff}));
    KvLayer kv = empty;
    kv.data = pages.data();
    std::vector<std::byte> result;
    int done = 0;
    for (const int rows : chunks) {
      std::vector<std::pair<int, int>> lengths = {{rows, done + rows}};
      std::vector<std::vector<std::int32_t>> tables = {{0, 1, 2, 3, 4}};
      std::vector<float> qkv(host_qkv.begin() + done * 3 * hidden,
                             host_qkv.begin() + (done + rows) * 3 * hidden);
      const int skip = neighbour ? 1 : 0;
      if (neighbour) {
        lengths.insert(lengths.begin(), {1, 1});
        tables = {{0}, {9, 7, 11, 2, 5}};
        qkv.insert(qkv.begin(), static_cast<std::size_t>(3 * hidden), 1.0f);
      }
      const TestBatch b = batch(lengths, tables);
      const Buffer device_qkv = upload(qkv);
      Buffer q = device->allocate(static_cast<std::size_t>(b.host.tokens) * row_bytes);
      const auto out = run(static_cast<std::size_t>(b.host.tokens) * row_bytes, [&](std::byte* y) {
        ops->split_qkv(device_qkv.as<float>(), 3 * hidden, device_bias.as<float>(), b.device, kv,
                       q.as<float>(), *stream);
        ops->attention(q.as<float>(), b.device, kv, slopes.as<float>(), y, DType::kFloat32,
                       *stream);
      });
      result.insert(result.end(), out.begin() + skip * static_cast<std::int64_t>(row_bytes),
                    out.end());
      done += rows;
    }
    return result;
  };
  const auto whole = prefill({keys}, false);
  ASSERT_EQ(whole.size(), keys * row_bytes);
  EXPECT_EQ(prefill({keys}, true), whole);
  EXPECT_EQ(prefill({1, 31, 7, 36}, false), whole);
  EXPECT_EQ(prefill({64, 11}, true), whole);
  EXPECT_EQ(prefill(std::vector<int>(keys, 1), true), whole);
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace zi
