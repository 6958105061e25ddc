#include "zero_infer/partition_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

UnitSpec block(std::int64_t hidden) {
  return {.name = "block 0",
          .matrices = {{"qkv", {3 * hidden, hidden}},
                       {"dense", {hidden, hidden}},
                       {"up", {4 * hidden, hidden}},
                       {"down", {hidden, 4 * hidden}}},
          .vectors = {{"norm", {hidden}}}};
}

UnitSpec one(std::vector<std::int64_t> shape) {
  return {.name = "head", .matrices = {{"head.weight", std::move(shape)}}, .vectors = {}};
}

TEST(PartitionLayout, ShardsCoverEveryRowOnce) {
  for (std::int64_t rows : {1, 2, 3, 5, 7, 320, 4096, 250880}) {
    for (int world : {1, 2, 3, 4, 5, 7, 8, 64}) {
      const PartitionLayout layout(one({rows, 8}), DType::kBFloat16, world);
      std::int64_t next = 0;
      for (int rank = 0; rank < world; ++rank) {
        const auto [first, count] = layout.rows_of(0, rank);
        ASSERT_EQ(first, next) << rows << " rows, rank " << rank << " of " << world;
        ASSERT_GE(count, 0);
        ASSERT_LE(count, layout.matrices()[0].rows_per_rank);
        next += count;
      }
      EXPECT_EQ(next, rows) << world;
      EXPECT_EQ(layout.matrices()[0].rows_per_rank, ceil_div(rows, world));
    }
  }
}

TEST(PartitionLayout, LastRanksMayHoldNoRowsAtAll) {
  const PartitionLayout layout(one({5, 8}), DType::kFloat32, 4);  // 2, 2, 1, 0
  EXPECT_EQ(layout.rows_of(0, 2).count, 1);
  EXPECT_EQ(layout.rows_of(0, 3).first, 5);
  EXPECT_EQ(layout.rows_of(0, 3).count, 0);
}

TEST(PartitionLayout, MatricesFollowEachOtherAlignedInAPagePaddedShard) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (int world : {1, 2, 3, 5}) {
      const PartitionLayout layout(block(100), dtype, world);
      std::size_t end = 0;
      for (const PartitionLayout::Matrix& m : layout.matrices()) {
        EXPECT_EQ(m.offset, align_up(end, kMatrixAlignment));
        EXPECT_EQ(m.bytes,
                  static_cast<std::size_t>(m.rows_per_rank * m.tensor.shape[1]) * size_of(dtype));
        end = m.offset + m.bytes;
      }
      EXPECT_EQ(layout.shard_bytes(), align_up(end, kPageBytes));
      EXPECT_EQ(layout.gathered_bytes(), layout.shard_bytes() * static_cast<std::size_t>(world));
    }
  }
}

TEST(PartitionLayout, AMatrixMayHaveAFormatOfItsOwn) {
  const UnitSpec unit = block(100);
  const MatrixFormats formats(kInt4Weights, {{unit.matrices[1].name, DType::kFloat16},
                                             {unit.matrices[3].name, kInt8Weights}});
  const PartitionLayout layout(unit, formats, 3);
  const std::vector<std::byte> slot(layout.gathered_bytes());
  const WeightFormat want[] = {kInt4Weights, DType::kFloat16, kInt4Weights, kInt8Weights};
  std::size_t end = 0;
  for (std::size_t i = 0; i < unit.matrices.size(); ++i) {
    const PartitionLayout::Matrix& m = layout.matrices()[i];
    EXPECT_EQ(m.format, want[i]);
    EXPECT_EQ(m.bytes,
              static_cast<std::size_t>(m.rows_per_rank) * want[i].row_bytes(m.tensor.shape[1]));
    EXPECT_EQ(m.offset, align_up(end, kMatrixAlignment));
    end = m.offset + m.bytes;
    EXPECT_EQ(layout.gathered(i, slot.data()).format, want[i]);
    EXPECT_EQ(layout.own(i, slot.data(), 1).format, want[i]);
  }
}

TEST(PartitionLayout, HasTheSizesOfThePublished176bModel) {
  const PartitionLayout layout(block(14336), DType::kBFloat16, 8);
  EXPECT_EQ(layout.shard_bytes(), std::size_t{12} * 14336 * 14336 * 2 / 8);
  EXPECT_EQ(layout.matrices()[2].rows_per_rank, 4 * 14336 / 8);
}

TEST(PartitionLayout, GatheredViewStridesOverShards) {
  const PartitionLayout layout(block(10), DType::kFloat32, 3);
  std::vector<std::byte> slot(layout.gathered_bytes());
  const RowBlockMatrix w = layout.gathered(2, slot.data());
  EXPECT_EQ(w.data, slot.data() + layout.matrices()[2].offset);
  EXPECT_EQ(w.rows, 40);
  EXPECT_EQ(w.cols, 10);
  EXPECT_EQ(w.blocks, 3);
  EXPECT_EQ(w.rows_per_block, 14);
  EXPECT_EQ(w.padded_rows(), 42);
  EXPECT_EQ(w.block_stride_bytes, layout.shard_bytes());
  EXPECT_EQ(w.format, WeightFormat(DType::kFloat32));
  const std::byte* last = w.data + 2 * w.block_stride_bytes + layout.matrices()[2].bytes;
  EXPECT_LE(last, slot.data() + slot.size());
}

TEST(PartitionLayout, OwnViewCountsTheRanksRealRows) {
  const PartitionLayout layout(block(10), DType::kBFloat16, 3);
  std::vector<std::byte> shard(layout.shard_bytes());
  EXPECT_EQ(layout.own(2, shard.data(), 0).rows, 14);
  const RowBlockMatrix last = layout.own(2, shard.data(), 2);
  EXPECT_EQ(last.rows, 12);
  EXPECT_EQ(last.blocks, 1);
  EXPECT_EQ(last.rows_per_block, 14);
  EXPECT_EQ(last.cols, 10);
  EXPECT_EQ(last.data, shard.data() + layout.matrices()[2].offset);
}

TEST(PartitionLayout, RefusesWhatCannotBeCut) {
  const auto make = [](std::vector<std::int64_t> shape, int world) {
    return [shape, world] { PartitionLayout(one(shape), DType::kBFloat16, world); };
  };
  EXPECT_THAT(make({8}, 2),
              ThrowsMessage<CheckpointError>(HasSubstr("`head.weight` has the shape [8]")));
  EXPECT_THAT(make({2, 2, 2}, 2), ThrowsMessage<CheckpointError>(HasSubstr("[2, 2, 2]")));
  EXPECT_THROW(make({0, 8}, 2)(), CheckpointError);
  EXPECT_THROW(make({8, 0}, 2)(), CheckpointError);
  EXPECT_THROW(make({-1, 8}, 2)(), CheckpointError);
  EXPECT_THROW(make({std::int64_t{1} << 40, std::int64_t{1} << 40}, 2)(), CheckpointError);
  EXPECT_THAT(make({8, 8}, 0), ThrowsMessage<ConfigError>(HasSubstr("0 ranks")));
  EXPECT_THROW(make({8, 8}, -3)(), ConfigError);
}

TEST(PartitionLayout, TheHostsShareIsTheLastRowsAndNeverMoreThanAsked) {
  const PartitionLayout layout(one({100, 8}), DType::kBFloat16, 1);
  EXPECT_EQ(layout.host_rows(0, 0), 0);
  EXPECT_EQ(layout.host_rows(0, 0.03), 0) << "the last 4 rows alone";
  EXPECT_EQ(layout.host_rows(0, 0.1), 4);
  EXPECT_EQ(layout.host_rows(0, 0.5), 36);
  EXPECT_EQ(layout.host_rows(0, 0.99), 68);
  EXPECT_EQ(layout.host_rows(0, 1), 100);
  EXPECT_EQ(layout.host_rows(0, 7), 100);
  EXPECT_EQ(layout.host_rows(0, -1), 0);
  const PartitionLayout few(one({20, 8}), DType::kBFloat16, 1);
  EXPECT_EQ(few.host_rows(0, 0.9), 0) << "less than the device's step";
  EXPECT_EQ(few.host_rows(0, 1), 20);
}

TEST(PartitionLayout, ASplitMatrixHasTwoPartsThatAreMatricesByThemselves) {
  const PartitionLayout layout(one({150, 8}), DType::kBFloat16, 2);  // 75 rows a rank
  std::vector<std::byte> shard(layout.gathered_bytes());
  for (const int rank : {0, 1}) {
    RowBlockMatrix matrix = layout.gathered(0, shard.data());
    matrix.only_block = rank;
    matrix.host_rows = layout.host_rows(0, 0.5);
    matrix.host = shard.data() + 512;
    const RowBlockMatrix own = matrix.own();
    EXPECT_EQ(own.device_part().data, shard.data());
    EXPECT_EQ(own.device_part().padded_rows(), 64);
    EXPECT_EQ(own.device_part().rows, 64);
    EXPECT_EQ(own.host_part().data, matrix.host);
    EXPECT_EQ(own.host_part().padded_rows(), 11);
    EXPECT_EQ(own.host_part().rows, 11);
    EXPECT_EQ(own.host_part().host_rows, 0);
  }
  // Padding is in the last rows.
  RowBlockMatrix padded = PartitionLayout(one({149, 8}), DType::kBFloat16, 2).gathered(0, nullptr);
  padded.only_block = 1;
  padded.host_rows = 11;
  EXPECT_EQ(padded.own().host_part().rows, 10);
}

}  // namespace
}  // namespace zi
