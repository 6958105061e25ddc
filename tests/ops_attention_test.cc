#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "ops_attention_inputs.h"

namespace zi {
namespace {

struct AttentionTest : OpsAttentionTest {
  /// Splits a random projection, `padding` columns wider than it needs, and looks at all pages.
  void match_split_qkv(const std::vector<std::pair<int, int>>& lengths,
                       const std::vector<std::vector<std::int32_t>>& pages, int heads, int head_dim,
                       int padding, DType dtype) {
    SCOPED_TRACE(fmt::format("head_dim {} {}", head_dim, name_of(dtype)));
    const TestBatch b = batch(lengths, pages);
    const std::int64_t ld = 3 * heads * head_dim + padding;
    const auto host_qkv = floats(b.host.tokens * ld);
    const auto bias = floats(3 * heads * head_dim);
    const Buffer qkv = upload(host_qkv);
    const Buffer device_bias = upload(bias);
    KvLayer kv{nullptr, dtype, heads, head_dim};
    std::size_t page_count = 1;
    for (const auto& list : pages) page_count += list.size();
    const auto width = static_cast<std::size_t>(head_dim);
    const std::size_t hidden = static_cast<std::size_t>(heads) * width;
    std::vector<std::byte> q;
    const auto got = run(page_count * kv.page_bytes(), [&](std::byte* data) {
      kv.data = data;
      q = run(static_cast<std::size_t>(b.host.tokens) * hidden * 4, [&](std::byte* out) {
        ops->split_qkv(qkv.as<float>(), ld, interleaved(kv, device_bias.as<float>()), b.device, kv,
                       reinterpret_cast<float*>(out), *stream);
      });
    });
    std::vector<std::byte> want(got.size(), kGuard);  // all other slots stay as they were
    std::vector<float> want_q;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      for (int row = b.row_begin[s]; row < b.row_begin[s + 1]; ++row) {
        const auto position = static_cast<std::size_t>(b.context[s] - b.row_begin[s + 1] + row);
        const auto page = static_cast<std::size_t>(pages[s][position / 16]);
        for (std::size_t column = 0; column < 3 * hidden; ++column) {
          const std::size_t head = column / width / 3;
          const std::size_t part = column / width % 3;
          const float sum = host_qkv[static_cast<std::size_t>(row * ld) + column] + bias[column];
          if (part == 0) {
            want_q.push_back(sum);
            continue;
          }
          const std::size_t element = (head * 16 + position % 16) * width + column % width;
          const std::size_t at = page * kv.page_bytes() + (part == 2 ? kv.page_bytes() / 2 : 0) +
                                 element * size_of(dtype);
          convert(&sum, DType::kFloat32, want.data() + at, dtype, 1);
        }
      }
    }
    EXPECT_EQ(got, want);
    EXPECT_EQ(q, as(want_q, DType::kFloat32));
  }
};

TEST_P(AttentionTest, MatchesTheReference) {
  for (const int head_dim : {64, 16, 80, 5, 256}) {
    for (const DType dtype : kDTypes) {
      match_the_reference({{1, 1}, {1, 33}, {40, 40}, {5, 50}, {0, 0}},
                          {{3}, {7, 0, 11}, {1, 9, 4}, {2, 12, 5, 8}, {}},
                          {0.5f, 0.0625f, 0.00390625f}, head_dim, dtype);
    }
  }
}

TEST_P(AttentionTest, MatchesTheReferenceOnPromptsOfManyTiles) {
  const std::vector<std::pair<int, int>> lengths = {{200, 237}, {65, 65}};
  const auto pages = shuffled_pages(lengths);
  const std::vector<float> slopes = {0.125f, 0.015625f};
  for (const DType dtype : kDTypes) match_the_reference(lengths, pages, slopes, 128, dtype);
  for (const int head_dim : {96, 160, 192, 8}) {
    match_the_reference(lengths, pages, slopes, head_dim, DType::kFloat16);
  }
}

TEST_P(AttentionTest, MatchesTheReferenceOnLongContexts) {
  const std::vector<std::pair<int, int>> lengths = {{1, 3000}};
  const auto pages = shuffled_pages(lengths);
  for (const int head_dim : {128, 96, 160, 8}) {
    for (const DType dtype : kDTypes) {
      match_the_reference(lengths, pages, {0.015625f, 0.0009765625f}, head_dim, dtype);
    }
  }
}

TEST_P(AttentionTest, MatchesTheReferenceOnPromptsBesideLongContexts) {
  const std::vector<std::pair<int, int>> lengths = {{1, 700}, {70, 70}, {0, 40}, {1, 1},
                                                    {2, 600}, {1, 513}, {0, 0}};
  const auto pages = shuffled_pages(lengths);
  for (const int head_dim : {64, 20}) {
    for (const DType dtype : kDTypes) {
      match_the_reference(lengths, pages, {0.0625f, 0.00390625f}, head_dim, dtype);
    }
  }
}

TEST_P(AttentionTest, MatchesTheReferenceOnManySequences) {
  std::vector<std::pair<int, int>> lengths;
  for (int s = 0; s < 300; ++s) lengths.emplace_back(s % 4, s % 4 + s % 19);
  const auto pages = shuffled_pages(lengths);
  for (const DType dtype : kDTypes) match_the_reference(lengths, pages, {0.0625f}, 8, dtype);
}

TEST_P(AttentionTest, MatchesTheReferenceOnManySingleRows) {
  // More heads than two rounds of a GPU's blocks, at short contexts and at one that is not. The
  // other backend has no bounds there, and sanitizers are slow.
  const int sequences = GetParam().exact ? 35 : 350;
  std::vector<std::pair<int, int>> lengths;
  for (int s = 0; s < sequences; ++s) lengths.emplace_back(s % 7 == 0 ? 0 : 1, 1 + s % 67);
  const std::vector<float> slopes = {0.5f, 0.125f, 0.0625f, 0.015625f, 0.00390625f};
  for (const int longest : {66, 300}) {
    lengths[1].second = longest;
    const auto pages = shuffled_pages(lengths);
    for (const DType dtype : kDTypes) match_the_reference(lengths, pages, slopes, 16, dtype);
    for (const int head_dim : {128, 20}) {
      match_the_reference(lengths, pages, slopes, head_dim, DType::kBFloat16);
    }
  }
}

TEST_P(AttentionTest, MatchesTheReferenceAfterAnyNumberOfEarlierKeys) {
  std::vector<std::pair<int, int>> lengths;
  for (int earlier = 0; earlier < 130; ++earlier) lengths.emplace_back(18, earlier + 18);
  match_the_reference(lengths, shuffled_pages(lengths), {0.015625f}, 8, DType::kFloat16);
}

TEST_P(AttentionTest, QueriesOfAGroupShareTheirKeysAndValues) {
  // Prompts, single rows with few and with many keys, and both together.
  for (const auto& lengths : std::vector<std::vector<std::pair<int, int>>>{
           {{3, 18}, {0, 7}, {40, 90}}, {{1, 1}, {1, 33}, {1, 700}}, {{1, 20}, {70, 130}}}) {
    const auto pages = shuffled_pages(lengths);
    for (const auto& [group, heads] : {std::pair{2, 6}, {4, 8}, {8, 8}, {3, 9}}) {
      // The other backend has one kernel for all, and sanitizers are slow.
      if (GetParam().exact && group != 3) continue;
      std::vector<float> slopes;
      for (int h = 0; h < heads; ++h) slopes.push_back(0.25f / static_cast<float>(h + 1));
      for (const int head_dim : {64, 20, 128}) {
        match_the_reference(lengths, pages, slopes, head_dim, DType::kBFloat16, group);
      }
      match_the_reference(lengths, pages, slopes, 40, DType::kFloat32, group);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(AttentionTest, PromptsOfAnyGroupFillLargeTiles) {
  // The CUDA backend has a kernel for tiles of 128 rows, all heads of a group in one. Three whole
  // tiles, and three that are nearly full, with and without earlier keys, beside other sequences.
  for (const int group : {1, 2, 3, 4, 5, 7, 8, 16}) {
    // The other backend has one kernel for all, and sanitizers are slow.
    if (GetParam().exact && group != 7) continue;
    const int tokens = 128 / group;
    const std::vector<std::pair<int, int>> lengths = {
        {1, 70}, {3 * tokens, 3 * tokens + 133}, {0, 5}, {3 * tokens - 1, 3 * tokens - 1}, {1, 1}};
    const auto pages = shuffled_pages(lengths);
    std::vector<float> slopes;
    for (int h = 0; h < (group == 1 ? 2 : group); ++h) {
      slopes.push_back(0.25f / static_cast<float>(h + 1));
    }
    for (const int head_dim : {64, 128}) {
      for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
        match_the_reference(lengths, pages, slopes, head_dim, dtype, group);
      }
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(AttentionTest, GroupsOfAnySizeShareTheKeysOfSingleRows) {
  const std::vector<std::pair<int, int>> lengths = {{1, 1},   {0, 40},   {1, 16},  {1, 17},
                                                    {1, 64},  {0, 0},    {1, 100}, {0, 3},
                                                    {1, 513}, {1, 1000}, {1, 33},  {0, 0}};
  const auto pages = shuffled_pages(lengths);
  for (const int group : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 40}) {
    // The other backend has one kernel for all, and sanitizers are slow.
    if (GetParam().exact && group != 7) continue;
    for (const int kv_heads : {1, 3}) {
      std::vector<float> slopes;
      for (int h = 0; h < group * kv_heads; ++h) {
        slopes.push_back(0.25f / static_cast<float>(h + 1));
      }
      for (const int head_dim : {64, 80, 96, 128, 8, 20, 136, 256}) {
        if (kv_heads == 3 && head_dim > 80) continue;
        match_the_reference(lengths, pages, slopes, head_dim, DType::kBFloat16, group);
      }
      match_the_reference(lengths, pages, slopes, 128, DType::kFloat16, group);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(AttentionTest, GroupsShareLongContexts) {
  const std::vector<std::pair<int, int>> lengths = {{1, 8192}, {0, 7}, {1, 5000}, {1, 4}};
  const auto pages = shuffled_pages(lengths);
  for (const auto& [group, head_dim] : {std::pair{4, 128}, {7, 64}, {16, 96}, {3, 256}}) {
    if (GetParam().exact && group != 4) continue;
    std::vector<float> slopes;
    for (int h = 0; h < group; ++h) slopes.push_back(0.001f * static_cast<float>(h + 1));
    match_the_reference(lengths, pages, slopes, head_dim, DType::kBFloat16, group);
    match_the_reference(lengths, pages, slopes, head_dim, DType::kFloat16, group);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionTest, GroupsShareTheKeysOfMoreSequencesThanADeviceRunsAtOnce) {
  const int sequences = GetParam().exact ? 9 : 350;
  std::vector<std::pair<int, int>> lengths;
  for (int s = 0; s < sequences; ++s) lengths.emplace_back(s % 7 == 0 ? 0 : 1, 1 + s * 5 % 67);
  for (const int longest : {30, 66, 300, 1100}) {
    for (auto& [rows, keys] : lengths) keys = std::min(keys, longest);
    lengths[1].second = longest;
    const auto pages = shuffled_pages(lengths);
    match_the_reference(lengths, pages, std::vector<float>(12, 0.0625f), 64, DType::kBFloat16, 4);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionTest, ScoresThatGrowAlongTheKeysKeepTheirWeights) {
  // Slopes so steep that the largest weight moves on with every page, in either direction.
  const std::vector<std::pair<int, int>> lengths = {{1, 700}, {1, 90}};
  const auto pages = shuffled_pages(lengths);
  for (const float slope : {2.0f, -2.0f}) {
    match_the_reference(lengths, pages, std::vector<float>(4, slope), 64, DType::kBFloat16, 4);
  }
}

TEST_P(AttentionTest, NoRowsAreNoWork) {
  const TestBatch b = batch({{0, 5}}, {{0}});
  const KvLayer kv{nullptr, DType::kBFloat16, 2, 16};
  run(0, [&](std::byte* out) {
    ops->split_qkv(nullptr, 96, interleaved(kv, nullptr), b.device, kv,
                   reinterpret_cast<float*>(out), *stream);
    ops->attention(nullptr, 2, b.device, kv, nullptr, out, DType::kBFloat16, *stream);
  });
}

TEST_P(AttentionTest, SplitQkvFillsQAndThePagesOfEachPosition) {
  const std::vector<std::pair<int, int>> lengths = {{3, 18}, {0, 7}, {1, 1}, {30, 50}};
  const auto pages = shuffled_pages(lengths);
  for (const DType dtype : kDTypes) {
    match_split_qkv(lengths, pages, 2, 20, 4, dtype);
    match_split_qkv(lengths, pages, 2, 20, 3, dtype);
    match_split_qkv(lengths, pages, 3, 5, 0, dtype);
    match_split_qkv(lengths, pages, 17, 128, 0, dtype);
  }
}

TEST_P(AttentionTest, SplitQkvFindsRowsAmongManySequences) {
  std::vector<std::pair<int, int>> lengths;
  for (int s = 0; s < 600; ++s) lengths.emplace_back(s % 3, s % 3 + s % 29);
  match_split_qkv(lengths, shuffled_pages(lengths), 1, 4, 0, DType::kBFloat16);
}

TEST_P(AttentionTest, RowsHaveTheSameBitsInEveryBatchAndChunk) {
  if (!GetParam().exact) GTEST_SKIP() << "this backend promises equality within rounding only";
  const int heads = 2;
  for (const int head_dim : {24, 64, 128}) {
    SCOPED_TRACE(head_dim);
    const std::int64_t hidden = heads * head_dim;
    const int keys = 75;
    const KvLayer empty{nullptr, DType::kBFloat16, heads, head_dim};
    const auto host_qkv = floats(keys * 3 * hidden);
    const auto bias = floats(3 * hidden);
    const Buffer device_bias = upload(bias);
    const Buffer slopes = upload(std::vector<float>{0.5f, 0.1f});
    const std::size_t row_bytes = static_cast<std::size_t>(hidden) * 4;

    // A prompt in chunks, with a decoding neighbour or without, on other pages.
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
        const auto out =
            run(static_cast<std::size_t>(b.host.tokens) * row_bytes, [&](std::byte* y) {
              ops->split_qkv(device_qkv.as<float>(), 3 * hidden,
                             interleaved(kv, device_bias.as<float>()), b.device, kv, q.as<float>(),
                             *stream);
              ops->attention(q.as<float>(), heads, b.device, kv, slopes.as<float>(), y,
                             DType::kFloat32, *stream);
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
    EXPECT_EQ(prefill({17, 33, 2, 23}, true), whole);
    EXPECT_EQ(prefill(std::vector<int>(keys, 1), true), whole);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace zi
