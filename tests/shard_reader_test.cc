#include "offload/shard_reader.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "packing/pack_rows.h"
#include "synthetic_checkpoint.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

UnitSpec block(std::int64_t hidden) {
  return {.name = "block 0",
          .matrices = {{"h.0.self_attention.query_key_value.weight", {3 * hidden, hidden}},
                       {"h.0.self_attention.dense.weight", {hidden, hidden}},
                       {"h.0.mlp.dense_h_to_4h.weight", {4 * hidden, hidden}},
                       {"h.0.mlp.dense_4h_to_h.weight", {hidden, 4 * hidden}}},
          .vectors = {}};
}

/// Counts how often each element is read; fails reads of one tensor when told to.
class CountingSource final : public WeightSource {
 public:
  explicit CountingSource(std::string failing = "") : failing_(std::move(failing)) {}
  void read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
            void* dst) const override {
    if (tensor.name == failing_) throw IoError("offset 17: broken");
    source_->read(tensor, first, count, to, dst);
    const std::lock_guard lock(mutex_);
    std::vector<int>& reads = reads_[tensor.name];
    reads.resize(static_cast<std::size_t>(tensor.elements()));
    for (std::int64_t i = first; i < first + count; ++i) ++reads[static_cast<std::size_t>(i)];
  }
  bool contains(const std::string&) const override { return true; }
  DType stored_dtype(const std::string&) const override { return DType::kFloat32; }
  std::uint64_t identity() const override { return 1; }
  std::string describe() const override { return "counting"; }

  const std::map<std::string, std::vector<int>>& reads() const { return reads_; }

 private:
  std::string failing_;
  std::unique_ptr<WeightSource> source_ = make_dummy_weights(1, DType::kFloat32);
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::vector<int>> reads_;
};

std::vector<std::byte> whole_shard(const WeightSource& source, const PartitionLayout& layout,
                                   int rank, int threads = 1) {
  std::vector<std::byte> shard(layout.shard_bytes(), std::byte{0xee});
  ReadThreads reads(threads);
  start_shard_read(reads, ShardReader(source, layout, rank), 0, shard);
  reads.finish();
  return shard;
}

/// Every row of every matrix in the ranks' shards equals the source's, and all the rest is zero.
void expect_shards_hold_the_unit(const WeightSource& source, const UnitSpec& unit, DType dtype,
                                 int world) {
  const PartitionLayout layout(unit, dtype, world);
  std::vector<std::byte> slot;
  for (int rank = 0; rank < world; ++rank) {
    const std::vector<std::byte> shard = whole_shard(source, layout, rank);
    slot.insert(slot.end(), shard.begin(), shard.end());
  }
  for (std::size_t m = 0; m < unit.matrices.size(); ++m) {
    const TensorSpec& tensor = unit.matrices[m];
    const RowBlockMatrix w = layout.gathered(m, slot.data());
    const std::size_t row_bytes = static_cast<std::size_t>(w.cols) * size_of(dtype);
    std::vector<std::byte> expected(static_cast<std::size_t>(tensor.elements()) * size_of(dtype));
    source.read(tensor, 0, tensor.elements(), dtype, expected.data());
    for (std::int64_t row = 0; row < w.padded_rows(); ++row) {
      std::byte* at = slot.data() + (w.data - slot.data()) +
                      static_cast<std::size_t>(row / w.rows_per_block) * w.block_stride_bytes +
                      static_cast<std::size_t>(row % w.rows_per_block) * row_bytes;
      if (row < w.rows) {
        ASSERT_EQ(
            std::memcmp(at, expected.data() + static_cast<std::size_t>(row) * row_bytes, row_bytes),
            0)
            << tensor.name << " row " << row << " world " << world;
        std::memset(at, 0, row_bytes);
      }
    }
  }
  EXPECT_TRUE(std::all_of(slot.begin(), slot.end(), [](std::byte b) { return b == std::byte{0}; }))
      << "padding is not zero, world " << world;
}

TEST(ShardReader, ShardsOfAllRanksHoldEveryRowInItsPlace) {
  const auto source = make_dummy_weights(4, DType::kBFloat16);
  for (int world = 1; world <= 5; ++world) {
    for (DType dtype : {DType::kBFloat16, DType::kFloat32}) {
      expect_shards_hold_the_unit(*source, block(33), dtype, world);
    }
  }
}

TEST(ShardReader, CutsTheBundledModelForAnyWorld) {
  const auto source = open_checkpoint(ZI_TEST_DATA "/bloom-kjv", "transformer.");
  for (int world = 1; world <= 5; ++world) {
    expect_shards_hold_the_unit(*source, block(320), DType::kBFloat16, world);
  }
}

TEST(ShardReader, RanksReadEachElementExactlyOnceTogether) {
  for (int world : {1, 2, 3, 4, 5, 40}) {
    const CountingSource source;
    const PartitionLayout layout(block(33), DType::kFloat32, world);
    for (int rank = 0; rank < world; ++rank) whole_shard(source, layout, rank, 2);
    ASSERT_EQ(source.reads().size(), 4u);
    for (const auto& [name, reads] : source.reads()) {
      EXPECT_TRUE(std::all_of(reads.begin(), reads.end(), [](int n) { return n == 1; }))
          << name << ", world " << world;
    }
  }
}

TEST(ShardReader, AnyRangeEqualsThatRangeOfTheWholeShard) {
  const auto source = make_dummy_weights(4, DType::kBFloat16);
  const PartitionLayout layout(block(33), DType::kBFloat16, 5);
  for (int rank : {0, 4}) {
    const ShardReader reader(*source, layout, rank);
    const std::vector<std::byte> whole = whole_shard(*source, layout, rank);
    for (std::size_t bytes : {2u, 254u, 1000u, 4096u}) {
      for (std::size_t offset = 0; offset + bytes <= whole.size(); offset += bytes) {
        std::vector<std::byte> part(bytes + 1, std::byte{0xee});
        reader.read(offset, std::span(part).first(bytes));
        ASSERT_EQ(std::memcmp(part.data(), whole.data() + offset, bytes), 0) << offset;
        ASSERT_EQ(part.back(), std::byte{0xee});
      }
    }
  }
}

/// What a rank's shard has to be: its rows, packed one by one.
std::vector<std::byte> packed_shard(const WeightSource& source, const PartitionLayout& layout,
                                    int rank) {
  std::vector<std::byte> shard(layout.shard_bytes());
  for (std::size_t m = 0; m < layout.matrices().size(); ++m) {
    const PartitionLayout::Matrix& matrix = layout.matrices()[m];
    const std::int64_t cols = matrix.tensor.shape[1];
    const PartitionLayout::RowRange rows = layout.rows_of(m, rank);
    std::vector<float> values(static_cast<std::size_t>(rows.count * cols));
    source.read(matrix.tensor, rows.first * cols, rows.count * cols, DType::kFloat32,
                values.data());
    EXPECT_EQ(
        pack_rows(values.data(), rows.count, cols, matrix.format, shard.data() + matrix.offset),
        rows.count);
  }
  return shard;
}

TEST(ShardReader, PacksItsRowsAndLeavesPaddingZero) {
  // float16 and float32 checkpoints, odd columns, more ranks than rows.
  for (const DType stored : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    const auto source = make_dummy_weights(4, stored);
    for (const WeightFormat& format : {kInt8Weights, kInt4Weights}) {
      for (const int world : {1, 3, 40}) {
        const PartitionLayout layout(block(33), format, world);
        for (int rank = 0; rank<world; rank += world> 3 ? 13 : 1) {
          ASSERT_EQ(whole_shard(*source, layout, rank, 2), packed_shard(*source, layout, rank))
              << name_of(stored) << " in " << name_of(format) << ", rank " << rank << " of "
              << world;
        }
      }
    }
  }
}

TEST(ShardReader, AnyRangeOfPackedRowsEqualsThatRangeOfTheWholeShard) {
  const auto source = make_dummy_weights(4, DType::kBFloat16);
  const PartitionLayout layout(block(33), kInt4Weights, 5);
  for (int rank : {0, 4}) {
    const ShardReader reader(*source, layout, rank);
    const std::vector<std::byte> whole = whole_shard(*source, layout, rank);
    for (std::size_t bytes : {1u, 47u, 254u, 1000u, 4096u}) {
      for (std::size_t offset = 0; offset + bytes <= whole.size(); offset += bytes + 13) {
        std::vector<std::byte> part(bytes + 1, std::byte{0xee});
        reader.read(offset, std::span(part).first(bytes));
        ASSERT_EQ(std::memcmp(part.data(), whole.data() + offset, bytes), 0) << offset;
        ASSERT_EQ(part.back(), std::byte{0xee});
      }
    }
  }
}

/// A source with one value that nothing can pack, at (row 70, column 9) of one matrix.
class SpoiltSource final : public WeightSource {
 public:
  explicit SpoiltSource(float value) : value_(value) {}
  void read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
            void* dst) const override {
    ASSERT_EQ(to, DType::kFloat32);
    source_->read(tensor, first, count, to, dst);
    const std::int64_t at = 70 * tensor.shape[1] + 9 - first;
    if (tensor.name.ends_with("h_to_4h.weight") && at >= 0 && at < count) {
      static_cast<float*>(dst)[at] = value_;
    }
  }
  bool contains(const std::string&) const override { return true; }
  DType stored_dtype(const std::string&) const override { return DType::kFloat32; }
  std::uint64_t identity() const override { return 1; }
  std::string describe() const override { return "spoilt"; }

 private:
  float value_;
  std::unique_ptr<WeightSource> source_ = make_dummy_weights(1, DType::kFloat32);
};

TEST(ShardReader, NamesTheTensorAndTheRowThatCannotBePacked) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity(), 1e30f}) {
    for (const WeightFormat& format : {kInt8Weights, kInt4Weights}) {
      const SpoiltSource source(value);
      const PartitionLayout layout(block(33), format, 2);  // 66 of 132 rows each
      EXPECT_NO_THROW(whole_shard(source, layout, 0, 3));
      EXPECT_THAT([&] { whole_shard(source, layout, 1, 3); },
                  ThrowsMessage<CheckpointError>(
                      AllOf(HasSubstr("tensor `h.0.mlp.dense_h_to_4h.weight`: row 70"),
                            HasSubstr(describe(format)))));
    }
  }
}

TEST(ShardReader, RefusesRangesThatAreNoneOfTheShard) {
  const auto source = make_dummy_weights(4, DType::kBFloat16);
  const PartitionLayout layout(block(33), DType::kBFloat16, 2);
  const ShardReader reader(*source, layout, 0);
  std::vector<std::byte> dst(64);
  EXPECT_NO_THROW(reader.read(reader.shard_bytes(), std::span(dst).first(0)));
  EXPECT_THAT([&] { reader.read(reader.shard_bytes() - 62, dst); },
              ThrowsMessage<Error>(HasSubstr("outside a shard")));
  EXPECT_THROW(reader.read(~std::size_t{1}, dst), Error);
  EXPECT_THAT([&] { reader.read(1, dst); }, ThrowsMessage<Error>(HasSubstr("between elements")));
  EXPECT_THROW(reader.read(0, std::span(dst).first(3)), Error);
  EXPECT_THROW(ShardReader(*source, layout, 2), Error);
  EXPECT_THROW(ShardReader(*source, layout, -1), Error);
  ReadThreads reads(1);
  EXPECT_THROW(reads.wait(start_shard_read(reads, reader, reader.shard_bytes(), dst)), Error);
}

TEST(StartShardRead, GivesTheSameBytesWithAnyNumberOfThreads) {
  const auto source = make_dummy_weights(4, DType::kBFloat16);
  const PartitionLayout layout(block(1000), DType::kBFloat16, 1);  // 24 MB: three pieces
  const std::vector<std::byte> expected = whole_shard(*source, layout, 0, 1);
  for (int threads : {0, 2, 16}) {
    EXPECT_TRUE(whole_shard(*source, layout, 0, threads) == expected) << threads;
  }
}

TEST(StartShardRead, TellsProgressUpToTheWholeShard) {
  const auto source = make_dummy_weights(4, DType::kBFloat16);
  const PartitionLayout layout(block(1000), DType::kBFloat16, 1);
  std::vector<std::byte> shard(layout.shard_bytes());
  std::atomic<std::size_t> done = 0;
  std::atomic<int> calls = 0;
  ReadThreads reads(4);
  start_shard_read(reads, ShardReader(*source, layout, 0), 0, shard, [&](std::size_t bytes) {
    done += bytes;
    ++calls;
  });
  reads.finish();
  EXPECT_EQ(done, layout.shard_bytes());
  EXPECT_GT(calls, 1);
}

TEST(StartShardRead, RethrowsTheFirstFailureOfAnyThread) {
  const CountingSource source("h.0.mlp.dense_4h_to_h.weight");
  const PartitionLayout layout(block(1000), DType::kBFloat16, 1);
  EXPECT_THAT([&] { whole_shard(source, layout, 0, 3); },
              ThrowsMessage<IoError>(HasSubstr("offset 17: broken")));
  const auto good = make_dummy_weights(4, DType::kBFloat16);
  std::vector<std::byte> shard(layout.shard_bytes());
  ReadThreads reads(3);
  const auto last = start_shard_read(reads, ShardReader(*good, layout, 0), 0, shard,
                                     [](std::size_t) { throw PeerError("stop"); });
  EXPECT_THROW(reads.wait(last), PeerError);
  EXPECT_THROW(reads.finish(), PeerError);
}

}  // namespace
}  // namespace zi
