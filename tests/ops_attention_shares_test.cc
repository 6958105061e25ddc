// Attention over sequences of unequal lengths, whose keys a GPU divides among blocks by their
// number: whatever the lengths, each key counts once.

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

using Lengths = std::vector<std::pair<int, int>>;  // of each sequence: rows in this pass, keys

/// A few short sequences, some without rows, around the given ones.
Lengths among_short_ones(const Lengths& others, int count) {
  Lengths lengths;
  for (int s = 0; s < count; ++s) lengths.emplace_back(s % 5 == 3 ? 0 : 1, 1 + s * 37 % 130);
  for (std::size_t i = 0; i < others.size(); ++i) {
    lengths.insert(lengths.begin() + static_cast<std::ptrdiff_t>((2 * i + 1) * lengths.size() /
                                                                 (2 * others.size())),
                   others[i]);
  }
  return lengths;
}

struct AttentionSharesTest : OpsAttentionTest {
  /// Queries of zeros weigh all keys alike, and values are small whole numbers: sums are exact in
  /// float32 and in any order, so a key that is left out or counted twice shows, however many there
  /// are.
  struct Counted {
    TestBatch batch;
    KvLayer kv;
    Buffer memory, q;
    std::vector<double> want;
  };

  Counted counted(const Lengths& lengths, int heads, int group, int head_dim, DType dtype) {
    const auto pages = shuffled_pages(lengths);
    Counted c{batch(lengths, pages), {nullptr, dtype, heads / group, head_dim}, {}, {}, {}};
    std::size_t page_count = 1;
    for (const auto& list : pages) page_count += list.size();
    std::vector<std::byte> host(page_count * c.kv.page_bytes(), std::byte{0xff});  // NaN
    const std::size_t row_bytes = static_cast<std::size_t>(head_dim) * size_of(dtype);
    const auto width = static_cast<std::size_t>(head_dim);
    std::vector<float> keys(width), values(width);
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      const auto [rows, context] = lengths[s];
      std::vector<double> sums(static_cast<std::size_t>(c.kv.heads) * width);
      for (int p = 0; p < context; ++p) {
        const auto page = static_cast<std::size_t>(pages[s][static_cast<std::size_t>(p / 16)]);
        for (std::size_t h = 0; h < static_cast<std::size_t>(c.kv.heads); ++h) {
          for (std::size_t d = 0; d < width; ++d) {
            const auto bits = random();
            keys[d] = static_cast<float>(bits % 8) - 4;
            values[d] = static_cast<float>(bits / 8 % 8);
            sums[h * width + d] += values[d];
          }
          std::byte* const at = host.data() + page * c.kv.page_bytes() +
                                (h * 16 + static_cast<std::size_t>(p % 16)) * row_bytes;
          convert(keys.data(), DType::kFloat32, at, dtype, width);
          convert(values.data(), DType::kFloat32, at + c.kv.page_bytes() / 2, dtype, width);
        }
        if (p < context - rows) continue;
        for (int head = 0; head < heads; ++head) {
          for (std::size_t d = 0; d < width; ++d) {
            const double sum = sums[static_cast<std::size_t>(head / group) * width + d];
            c.want.push_back(sum / (p + 1));
          }
        }
      }
    }
    c.memory = upload(host);
    c.kv.data = c.memory.data();
    c.q = upload(std::vector<float>(c.want.size()));
    return c;
  }

  std::vector<std::byte> attend(const Counted& c, int heads) {
    return run(c.want.size() * sizeof(float), [&](std::byte* out) {
      ops->attention(c.q.as<float>(), heads, c.batch.device, c.kv, nullptr, out, DType::kFloat32,
                     *stream);
    });
  }

  void count_every_key(const Lengths& lengths, int heads, int group, int head_dim, DType dtype) {
    SCOPED_TRACE(
        fmt::format("{} heads of {}, groups of {}, {}", heads, head_dim, group, name_of(dtype)));
    const Counted c = counted(lengths, heads, group, head_dim, dtype);
    const auto got = attend(c, heads);
    // The division rounds, or the reciprocal and its product.
    expect_near(got, DType::kFloat32, c.want, 1e-6, 1e-6);
    EXPECT_EQ(attend(c, heads), got) << "the second time";
  }

  /// All kernels: types, sizes of a head, and groups.
  void count_every_key(const Lengths& lengths) {
    for (const int head_dim : {64, 128}) {
      for (const DType dtype : kDTypes) count_every_key(lengths, 2, 1, head_dim, dtype);
      count_every_key(lengths, 4, 4, head_dim, DType::kBFloat16);
      if (HasFatalFailure() || GetParam().exact) return;
      count_every_key(lengths, 16, 8, head_dim, DType::kFloat16);
      count_every_key(lengths, 12, 12, head_dim, DType::kBFloat16);
      count_every_key(lengths, 20, 20, head_dim, DType::kBFloat16);
      if (HasFatalFailure()) return;
    }
    for (const int head_dim : {20, 80, 96, 256, 5}) {
      count_every_key(lengths, 3, 1, head_dim, DType::kBFloat16);
      count_every_key(lengths, 6, 3, head_dim, DType::kBFloat16);
      count_every_key(lengths, 4, 2, head_dim, DType::kFloat32);
      if (HasFatalFailure()) return;
    }
  }

  int fewer(int count) const {
    return GetParam().exact ? count / 8 : count;
  }  // sanitizers are slow
};

TEST_P(AttentionSharesTest, OneLongSequenceAmongShortOnes) {
  count_every_key(among_short_ones({{1, fewer(9000)}}, 63));
}

TEST_P(AttentionSharesTest, SequencesOfAllLengths) {
  count_every_key({{1, fewer(512)},
                   {1, fewer(8000)},
                   {1, fewer(1024)},
                   {1, fewer(2048)},
                   {0, 300},
                   {1, fewer(4096)},
                   {1, 1}});
}

TEST_P(AttentionSharesTest, SequencesOfEqualLengths) {
  count_every_key(Lengths(static_cast<std::size_t>(fewer(24)), {1, 1000}));
}

TEST_P(AttentionSharesTest, OneSequenceAlone) {
  count_every_key({{1, 520}});
  count_every_key(Lengths{{0, 9}, {1, fewer(32768)}, {0, 0}});
}

TEST_P(AttentionSharesTest, LengthsAtTheEdgesOfPagesAndUnits) {
  Lengths lengths;
  for (const int edge : {16, 64, 128, 256, 512, 1024}) {
    for (const int keys : {edge - 1, edge, edge + 1}) lengths.emplace_back(1, keys);
    lengths.emplace_back(0, edge);
  }
  count_every_key(lengths);
  std::ranges::reverse(lengths);
  count_every_key(lengths, 4, 4, 64, DType::kBFloat16);
  count_every_key(lengths, 2, 1, 64, DType::kBFloat16);
}

TEST_P(AttentionSharesTest, MoreSequencesThanABlockHasThreads) {
  // Long ones first, last, and between; on either side of a block's number of threads.
  for (const int count : {126, 300}) {
    Lengths lengths = among_short_ones({{1, 700}, {1, 1500}, {1, 900}}, fewer(count));
    lengths.front().second = 1100;
    lengths.back() = {1, 1300};
    count_every_key(lengths, 2, 1, 64, DType::kBFloat16);
    count_every_key(lengths, 3, 1, 20, DType::kFloat32);
    count_every_key(lengths, 8, 4, 64, DType::kBFloat16);
    count_every_key(lengths, 3, 3, 256, DType::kBFloat16);
    // All but one without rows.
    for (auto& [rows, keys] : lengths) rows = keys == 1500 ? 1 : 0;
    count_every_key(lengths, 2, 1, 64, DType::kBFloat16);
    count_every_key(lengths, 4, 4, 64, DType::kBFloat16);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionSharesTest, MoreKeysThanOneRoundOfBlocksTakes) {
  const Lengths lengths(static_cast<std::size_t>(fewer(24)), {1, fewer(32000)});
  count_every_key(lengths, 20, 20, 8, DType::kFloat32);
  count_every_key(lengths, 80, 40, 8, DType::kBFloat16);
}

TEST_P(AttentionSharesTest, ManyShortSequencesInAShare) {
  // Of a large GPU's blocks, too, each has some ten, which have keys for all of its warps, or not.
  const Lengths lengths = among_short_ones({{1, 520}}, fewer(300));
  for (const int head_dim : {8, 104}) {
    count_every_key(lengths, 16, 2, head_dim, DType::kBFloat16);
    count_every_key(lengths, 96, 12, head_dim, DType::kFloat16);
    count_every_key(lengths, 8, 1, head_dim, DType::kBFloat16);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionSharesTest, RowsOfPromptsAmongSingleOnes) {
  // On a GPU those of float32 and of odd sizes are divided row by row, the others by themselves.
  const Lengths lengths = {{1, 700}, {7, 650}, {0, 40}, {1, 1}, {33, 33}, {2, 1300}, {1, 513}};
  for (const DType dtype : kDTypes) {
    count_every_key(lengths, 2, 1, 64, dtype);
    count_every_key(lengths, 4, 2, 20, dtype);
  }
  count_every_key({{90, 700}, {1, 2000}}, 32, 1, 8, DType::kFloat32);
}

TEST_P(AttentionSharesTest, WeightsOfPiecesKeepTheirProportion) {
  const Lengths lengths = among_short_ones({{1, fewer(6000)}, {1, 900}}, 20);
  const auto pages = shuffled_pages(lengths);
  const std::vector<float> slopes = {0.0001f, -0.0005f, 0.01f, 0.5f};
  for (const DType dtype : kDTypes) {
    match_the_reference(lengths, pages, slopes, 64, dtype);
    match_the_reference(lengths, pages, slopes, 128, dtype, 4);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionSharesTest, ARecordedCallStaysRightWhileContextsGrow) {
  const Lengths first = {{1, 520}, {1, 90}, {1, 700}, {1, 33}};
  const Lengths later = {{1, 1000}, {1, 95}, {1, 1024}, {1, 600}};
  for (const auto& shape : {std::pair{2, 1}, {8, 4}}) {
    const int heads = shape.first;
    Counted c = counted(later, heads, shape.second, 64, DType::kBFloat16);
    RaggedBatch batch = c.batch.device;
    std::vector<std::int32_t> contexts;
    for (const auto& [rows, keys] : first) contexts.push_back(keys);
    batch.host_context = contexts;
    const std::vector<float> nothing(c.want.size());
    const Buffer out = upload(nothing);
    const auto attend_first = [&] {
      ops->attention(c.q.as<float>(), heads, batch, c.kv, nullptr, out.data(), DType::kFloat32,
                     *stream);
    };
    device->copy(c.batch.device_context.data(), contexts.data(), contexts.size() * 4, *stream);
    attend_first();
    stream->synchronize();
    const auto graph = device->record(*stream, attend_first);
    if (graph == nullptr) GTEST_SKIP() << "this backend records nothing";
    for (const auto& lengths : {later, first, later}) {
      contexts.clear();
      for (const auto& [rows, keys] : lengths) contexts.push_back(keys);
      device->copy(c.batch.device_context.data(), contexts.data(), contexts.size() * 4, *stream);
      graph->launch(*stream);
      stream->synchronize();
    }
    std::vector<std::byte> got(out.bytes());
    device->copy(got.data(), out.data(), got.size(), *stream);
    stream->synchronize();
    expect_near(got, DType::kFloat32, c.want, 1e-6, 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionSharesTest, ::testing::ValuesIn(backends()),
                         backend_name);

}  // namespace
}  // namespace zi
