// Matrices that other programs have quantized, read as packed rows.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>

#include "packing/unpack_rows.h"
#include "quantized_rows_fixture.h"
#include "sanitized.h"

namespace zi {
namespace {

using test::kind_named;
using test::kName;
using test::kPart;
using test::kStem;
using test::multiples_of;
using test::quantized_example;
using test::quantized_kinds;
using test::QuantizedExample;
using test::QuantizedKind;
using test::set;
using test::TestTensors;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// Columns that end at a group, before its end, in the middle of a word, and short of one.
constexpr std::int64_t kShapes[][2] = {{1, 1}, {3, 17}, {8, 64}, {7, 33}, {40, 100}, {21, 300}};

std::int64_t to_multiple(std::int64_t value, std::int64_t of) { return (value + of - 1) / of * of; }

/// Codes of a row behind its last column.
void expect_zero_behind(const std::byte* row, const WeightFormat& format, std::int64_t cols) {
  const bool int4 = format.kind == WeightFormat::Kind::kInt4;
  const auto end = static_cast<std::int64_t>(format.scales_at(cols)) * (int4 ? 2 : 1);
  for (std::int64_t c = cols; c < end; ++c) {
    std::uint32_t word = 0;
    std::memcpy(&word, row + (int4 ? c / 8 : c / 4) * 4, sizeof word);
    const auto shift = int4 ? c % 8 / 2 * 4 + c % 2 * 16 : c % 4 * 8;
    EXPECT_EQ(word >> shift & (int4 ? 15u : 255u), 0u) << c;
  }
}

struct QuantizedRowsTest : test::QuantizedRowsFixture {};

TEST_F(QuantizedRowsTest, HaveTheValuesOfEveryFormatAndShape) {
  for (const QuantizedKind& kind : quantized_kinds()) {
    for (const auto& [least_rows, least_cols] : kShapes) {
      const auto [rows_multiple, cols_multiple] = multiples_of(kind);
      const std::int64_t rows = to_multiple(least_rows, rows_multiple);
      const std::int64_t cols = to_multiple(least_cols, cols_multiple);
      SCOPED_TRACE(fmt::format("{}, ({}, {})", kind.name, rows, cols));
      const QuantizedExample example = quantized_example(kind, kStem, rows, cols, 5);
      const auto source = open(kind, example.tensors);
      EXPECT_THAT(source->names(),
                  ::testing::ElementsAre(std::string("model.") + kName, "model.norm.weight"));
      EXPECT_EQ(source->stored_dtype(kName), DType::kBFloat16);
      const WeightFormat format = source->packed_format(kName).value();
      const auto packed = rows_of(*source, {kName, {rows, cols}});
      std::vector<float> values(example.values.size());
      unpack_rows(packed.data(), rows, cols, format, DType::kFloat32, values.data());
      EXPECT_EQ(values, example.values);
      // Nothing is left of the memory's old content, nor of what words hold beyond the columns.
      for (std::int64_t row = 0; row < rows; ++row) {
        expect_zero_behind(packed.data() + static_cast<std::size_t>(row) * format.row_bytes(cols),
                           format, cols);
      }
    }
  }
}

TEST_F(QuantizedRowsTest, AnyRangeIsThatOfAllRows) {
  for (const QuantizedKind& kind : quantized_kinds()) {
    SCOPED_TRACE(kind.name);
    constexpr std::int64_t kRows = 72, kCols = 136;
    const auto source = open(kind, quantized_example(kind, kStem, kRows, kCols, 6).tensors);
    const TensorSpec matrix{kName, {kRows, kCols}};
    const auto all = rows_of(*source, matrix);
    const std::size_t row_bytes = all.size() / kRows;
    for (const std::int64_t first : {0, 1, 7, 8, 9, 31, 71, 72}) {
      for (const std::int64_t count : {0, 1, 2, 7, 8, 9, 40}) {
        if (first + count > kRows) continue;
        std::vector<std::byte> some(static_cast<std::size_t>(count) * row_bytes + 1,
                                    std::byte{0xee});
        source->read_packed(matrix, first, count, some.data());
        EXPECT_EQ(std::memcmp(some.data(), all.data() + static_cast<std::size_t>(first) * row_bytes,
                              some.size() - 1),
                  0)
            << first << " +" << count;
        EXPECT_EQ(some.back(), std::byte{0xee});
      }
    }
    EXPECT_THROW(source->read_packed(matrix, 71, 2, nullptr), CheckpointError);
  }
}

TEST_F(QuantizedRowsTest, RanksHaveTheirOwnRowsAndPaddingIsZero) {
  for (const QuantizedKind& kind : quantized_kinds()) {
    constexpr std::int64_t kRows = 24, kCols = 40;
    const auto source = open(kind, quantized_example(kind, kStem, kRows, kCols, 7).tensors);
    const TensorSpec matrix{kName, {kRows, kCols}};
    const auto all = rows_of(*source, matrix);
    const WeightFormat format = source->packed_format(kName).value();
    const std::size_t row_bytes = format.row_bytes(kCols);
    // The last ranks have fewer rows, one, or none.
    for (const int world : {1, 2, 3, 5, 7, 23, 24, 30}) {
      SCOPED_TRACE(fmt::format("{}, {} ranks", kind.name, world));
      const PartitionLayout layout({.name = "block 0", .matrices = {matrix}, .vectors = {}}, format,
                                   world);
      for (int rank = 0; rank < world; ++rank) {
        std::vector<std::byte> shard(layout.shard_bytes(), std::byte{0xee});
        // In pieces that cut rows.
        for (std::size_t at = 0; at < shard.size(); at += 1000) {
          ShardReader(*source, layout, rank)
              .read(at,
                    std::span(shard).subspan(at, std::min<std::size_t>(1000, shard.size() - at)));
        }
        std::vector<std::byte> want(layout.shard_bytes());
        const auto own = layout.rows_of(0, rank);
        std::copy_n(all.data() + static_cast<std::size_t>(own.first) * row_bytes,
                    static_cast<std::size_t>(own.count) * row_bytes, want.data());
        EXPECT_EQ(shard, want) << rank;
      }
    }
  }
}

/// What the kernel counts of this process's reads: `rchar:` bytes, `syscr:` calls.
std::uint64_t io_count(const std::string& wanted) {
  std::ifstream file("/proc/self/io");
  std::string key;
  std::uint64_t value = 0;
  while (file >> key >> value) {
    if (key == wanted) return value;
  }
  ADD_FAILURE() << wanted;
  return 0;
}

TEST_F(QuantizedRowsTest, RanksReadTheFileAboutOnceTogether) {
  constexpr std::int64_t kRows = test::kSanitized ? 512 : 4096, kCols = 2048;
  for (const QuantizedKind& kind : quantized_kinds()) {
    const auto source = open(kind, quantized_example(kind, kStem, kRows, kCols, 8).tensors);
    const auto file = std::filesystem::file_size(directory.path() / "model.safetensors");
    const UnitSpec unit{.name = "block 0", .matrices = {{kName, {kRows, kCols}}}, .vectors = {}};
    for (const int world : {1, 3, 8}) {
      const PartitionLayout cut(unit, source->packed_format(kName).value(), world);
      const std::uint64_t before = io_count("rchar:");
      for (int rank = 0; rank < world; ++rank) {
        std::vector<std::byte> shard(cut.shard_bytes());
        const ShardReader reader(*source, cut, rank);
        constexpr std::size_t kPiece = std::size_t{1} << 20;
        for (std::size_t at = 0; at < shard.size(); at += kPiece) {
          reader.read(at, std::span(shard).subspan(at, std::min(kPiece, shard.size() - at)));
        }
      }
      EXPECT_LE(io_count("rchar:") - before, 2 * file + (1u << 20)) << kind.name << ", " << world;
    }
  }
}

TEST_F(QuantizedRowsTest, ZeroPointsOfSymmetricCodesAreInTheMiddle) {
  const TensorSpec matrix{kName, {32, 64}};
  const auto symmetric = [](const char* name) {
    QuantizedKind kind = kind_named(name);
    kind.config["config_groups"]["group_0"]["weights"]["symmetric"] = true;
    return kind;
  };
  for (const auto& [name, middle, zero] :
       {std::tuple{"packed g128 asym", '\x88', "8"},
        std::tuple{"packed 8 bits asym", '\x80', "128"}, std::tuple{"int8 rows asym", '\0', "128"},
        std::tuple{"int8 one scale asym", '\0', "128"}}) {
    SCOPED_TRACE(name);
    const QuantizedKind kind = symmetric(name);
    TestTensors tensors = quantized_example(kind_named(name), kStem, 32, 64, 1).tensors;
    EXPECT_THAT(refusal(kind, tensors, matrix),
                AllOf(HasSubstr("weight_zero_point` has the zero point "),
                      HasSubstr("`symmetric` in `quantization_config` says that all are "),
                      HasSubstr(zero)));
    std::string& bytes = tensors.at(kPart + "weight_zero_point").bytes;
    bytes.assign(bytes.size(), middle);
    const auto with = open(kind, tensors);
    EXPECT_FALSE(with->packed_format(kName)->zeros);
    const auto rows = rows_of(*with, matrix);
    tensors.erase(kPart + "weight_zero_point");
    EXPECT_EQ(rows_of(*open(kind, tensors), matrix), rows);
  }
}

TEST_F(QuantizedRowsTest, ZeroPointsOfFloat8AreZero) {
  const TensorSpec matrix{kName, {32, 64}};
  const QuantizedKind kind = kind_named("float8 rows");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  tensors[kPart + "weight_zero_point"] = {"F8_E4M3", {32, 1}, std::string(32, '\0')};
  EXPECT_EQ(refusal(kind, tensors, matrix), "nothing was refused");
  tensors[kPart + "weight_zero_point"].bytes[31] = '\x38';
  EXPECT_THAT(refusal(kind, tensors, matrix),
              HasSubstr("weight_zero_point` has a zero point that is not 0"));
}

TEST_F(QuantizedRowsTest, ScalesOfKeysAndValuesArePassedOverWhereConfigSpeaksOfThem) {
  QuantizedKind kind = kind_named("float8 rows");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  const std::string attention = "model.layers.0.self_attn.";
  for (const char* name : {"k_scale", "v_scale", "kv_scale", "q_scale", "prob_scale"}) {
    tensors[attention + name] = {"F32", {}, std::string(4, '\0')};
  }
  EXPECT_THAT(open(kind, tensors)->names(), ::testing::Contains(attention + "k_scale"));
  kind.config["kv_cache_scheme"] = {{"num_bits", 8}};
  EXPECT_THAT(open(kind, tensors)->names(),
              ::testing::ElementsAre(std::string("model.") + kName, "model.norm.weight"));
}

/// Rows of a turned matrix are columns of the file: a piece that cuts rows at both ends takes as
/// many reads as one that does not.
TEST_F(QuantizedRowsTest, RowsThatAreCutAreReadWithTheOthers) {
  const QuantizedKind kind = kind_named("gptq g32");
  constexpr std::int64_t kRows = 512, kCols = 1024;
  const auto source = open(kind, quantized_example(kind, kStem, kRows, kCols, 8).tensors);
  const PartitionLayout layout(
      {.name = "block 0", .matrices = {{kName, {kRows, kCols}}}, .vectors = {}},
      source->packed_format(kName).value(), 1);
  const ShardReader reader(*source, layout, 0);
  const std::size_t row = layout.shard_bytes() / kRows;
  std::vector<std::byte> piece(32 * row);
  const auto reads = [&](std::size_t offset) {
    const std::uint64_t before = io_count("syscr:");
    reader.read(offset, piece);
    return io_count("syscr:") - before;
  };
  reads(0);  // what is read but once
  const std::uint64_t whole = reads(64 * row);
  EXPECT_GT(whole, 100u);
  EXPECT_LE(reads(64 * row + row / 2), whole + 8);
}

TEST_F(QuantizedRowsTest, PartsMayBeInSeveralFiles) {
  const QuantizedKind kind = kind_named("gptq g32");
  const QuantizedExample example = quantized_example(kind, kStem, 32, 64, 1);
  const auto alone = open(kind, example.tensors);
  const TensorSpec matrix{kName, {32, 64}};
  const auto want = rows_of(*alone, matrix);
  std::filesystem::remove(directory.path() / "model.safetensors");
  nlohmann::json map;
  int number = 0;
  for (const auto& [name, tensor] : example.tensors) {
    const std::string file = fmt::format("model-{}.safetensors", ++number);
    test::write_tensors(directory.path() / file, {{name, tensor}});
    map[name] = file;
  }
  test::write_text(directory.path() / "model.safetensors.index.json",
                   nlohmann::json{{"weight_map", map}}.dump());
  const auto source =
      open_checkpoint(directory.path(), "model.", test::quantization_of(kind.config));
  EXPECT_EQ(rows_of(*source, matrix), want);
  EXPECT_THAT(source->warnings(), IsEmpty());
  EXPECT_THAT(source->names(), ::testing::ElementsAre(std::string("model.") + kName));
}

TEST_F(QuantizedRowsTest, TheIdentitySeesScalesAndWhatConfigSaysOfThem) {
  const QuantizedKind kind = kind_named("gptq g32");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  const auto id = [&](const QuantizedKind& of) { return open(of, tensors)->content_identity(); };
  const std::uint64_t base = id(kind);
  EXPECT_EQ(id(kind), base);
  QuantizedKind v2 = kind;
  v2.config["checkpoint_format"] = "gptq_v2";
  EXPECT_NE(id(v2), base);
  set<std::uint16_t>(tensors, kPart + "scales", 3, 0x3c00);
  EXPECT_NE(id(kind), base);
}

}  // namespace
}  // namespace zi
