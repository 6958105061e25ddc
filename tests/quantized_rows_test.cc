// Matrices that other programs have quantized, read as packed rows.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>

#include "offload/shard_reader.h"
#include "packing/unpack_rows.h"
#include "quantized_checkpoint.h"
#include "synthetic_checkpoint.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using test::multiples_of;
using test::quantized_example;
using test::quantized_kinds;
using test::QuantizedExample;
using test::QuantizedKind;
using test::TestTensors;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr const char* kStem = "model.layers.0.mlp.down_proj";
constexpr const char* kName = "layers.0.mlp.down_proj.weight";

/// Columns that end at a group, before its end, in the middle of a word, and short of one.
constexpr std::int64_t kShapes[][2] = {{1, 1}, {3, 17}, {8, 64}, {7, 33}, {40, 100}, {21, 300}};

std::int64_t to_multiple(std::int64_t value, std::int64_t of) { return (value + of - 1) / of * of; }

struct QuantizedRowsTest : ::testing::Test {
  /// A checkpoint of these tensors and one of 16 bits.
  std::unique_ptr<WeightSource> open(const QuantizedKind& kind, TestTensors tensors) {
    tensors["model.norm.weight"] = {"BF16", {2}, std::string(4, '\0')};
    test::write_tensors(directory.path() / "model.safetensors", tensors);
    return open_checkpoint(directory.path(), "model.", test::quantization_of(kind.config));
  }
  static std::vector<std::byte> rows_of(const WeightSource& source, const TensorSpec& matrix) {
    const WeightFormat format = source.packed_format(matrix.name).value();
    std::vector<std::byte> rows(
        static_cast<std::size_t>(matrix.shape[0]) * format.row_bytes(matrix.shape[1]),
        std::byte{0xee});
    source.read_packed(matrix, 0, matrix.shape[0], rows.data());
    return rows;
  }
  /// Codes of a row behind its last column.
  static void expect_zero_behind(const std::byte* row, const WeightFormat& format,
                                 std::int64_t cols) {
    const bool int4 = format.kind == WeightFormat::Kind::kInt4;
    const auto end = static_cast<std::int64_t>(format.scales_at(cols)) * (int4 ? 2 : 1);
    for (std::int64_t c = cols; c < end; ++c) {
      std::uint32_t word = 0;
      std::memcpy(&word, row + (int4 ? c / 8 : c / 4) * 4, sizeof word);
      const auto shift = int4 ? c % 8 / 2 * 4 + c % 2 * 16 : c % 4 * 8;
      EXPECT_EQ(word >> shift & (int4 ? 15u : 255u), 0u) << c;
    }
  }
  /// What reading a matrix of such tensors says.
  std::string refusal(const QuantizedKind& kind, const TestTensors& tensors,
                      const TensorSpec& matrix) {
    try {
      const auto source = open(kind, tensors);
      const PartitionLayout layout({.name = "block 0", .matrices = {matrix}, .vectors = {}},
                                   source->packed_format(matrix.name).value(), 1);
      std::vector<std::byte> shard(layout.shard_bytes());
      ShardReader(*source, layout, 0).read(0, shard);
    } catch (const CheckpointError& error) {
      EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
      return error.what();
    }
    return "nothing was refused";
  }
  test::TemporaryDirectory directory;
};

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

/// Bytes that this process has asked files for.
std::uint64_t bytes_read() {
  std::ifstream file("/proc/self/io");
  std::string key;
  std::uint64_t value = 0;
  file >> key >> value;
  EXPECT_EQ(key, "rchar:");
  return value;
}

TEST_F(QuantizedRowsTest, RanksReadTheFileAboutOnceTogether) {
  constexpr std::int64_t kRows = 4096, kCols = 2048;
  for (const QuantizedKind& kind : quantized_kinds()) {
    const auto source = open(kind, quantized_example(kind, kStem, kRows, kCols, 8).tensors);
    const auto file = std::filesystem::file_size(directory.path() / "model.safetensors");
    const UnitSpec unit{.name = "block 0", .matrices = {{kName, {kRows, kCols}}}, .vectors = {}};
    for (const int world : {1, 3, 8}) {
      const PartitionLayout cut(unit, source->packed_format(kName).value(), world);
      const std::uint64_t before = bytes_read();
      for (int rank = 0; rank < world; ++rank) {
        std::vector<std::byte> shard(cut.shard_bytes());
        const ShardReader reader(*source, cut, rank);
        constexpr std::size_t kPiece = std::size_t{1} << 20;
        for (std::size_t at = 0; at < shard.size(); at += kPiece) {
          reader.read(at, std::span(shard).subspan(at, std::min(kPiece, shard.size() - at)));
        }
      }
      EXPECT_LE(bytes_read() - before, 2 * file + (1u << 20)) << kind.name << ", " << world;
    }
  }
}

QuantizedKind kind_named(const std::string& name) {
  const auto kinds = quantized_kinds();
  const auto found = std::ranges::find(kinds, name, &QuantizedKind::name);
  EXPECT_NE(found, kinds.end()) << name;
  return *found;
}

/// Changes one element of a tensor.
template <typename T>
void set(TestTensors& tensors, const std::string& name, std::size_t index, T value) {
  std::memcpy(tensors.at(name).bytes.data() + index * sizeof(T), &value, sizeof value);
}

const std::string kPart = std::string(kStem) + ".";

TEST_F(QuantizedRowsTest, APartThatIsMissingIsNamed) {
  const TensorSpec matrix{kName, {32, 64}};
  for (const auto& [name, part, what] :
       {std::tuple{"gptq g32", "scales", "and no scales"},
        std::tuple{"gptq g64 sym", "qzeros", "and no zero points"},
        std::tuple{"awq g32", "scales", "and no scales"},
        std::tuple{"packed g32", "weight_scale", "and no scales"},
        std::tuple{"packed g128 asym", "weight_zero_point", "and no zero points"},
        std::tuple{"int8 rows asym", "weight_zero_point", "and no zero points"},
        std::tuple{"fp8 blocks", "weight_scale_inv", "and no scales"}}) {
    const QuantizedKind kind = kind_named(name);
    TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
    ASSERT_EQ(tensors.erase(kPart + part), 1u) << name;
    EXPECT_THAT(refusal(kind, tensors, matrix), AllOf(HasSubstr(kName), HasSubstr(what))) << name;
  }
}

TEST_F(QuantizedRowsTest, PartsOfAnotherTypeOrShapeAreNamed) {
  const TensorSpec matrix{kName, {32, 64}};
  const auto with = [&](const char* name, const std::string& part,
                        const std::function<void(test::TestTensor&)>& change) {
    const QuantizedKind kind = kind_named(name);
    TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
    change(tensors.at(kPart + part));
    return refusal(kind, tensors, matrix);
  };
  const auto type = [](const char* dtype) {
    return [dtype](test::TestTensor& t) { t.dtype = dtype; };
  };
  EXPECT_THAT(with("gptq g32", "qweight", type("F32")), HasSubstr("qweight` is stored as `F32`"));
  EXPECT_THAT(with("gptq g32", "scales", type("I16")), HasSubstr("holds scales as `I16`"));
  EXPECT_THAT(with("fp8 blocks", "weight", type("F8_E5M2")),
              HasSubstr("weight` is stored as `F8_E5M2`"));
  EXPECT_THAT(with("awq g32", "qzeros", type("U32")), HasSubstr("qzeros` is stored as `U32`"));
  const auto shape = [](std::vector<std::int64_t> to) {
    return [to](test::TestTensor& t) { t.shape = to; };
  };
  EXPECT_THAT(with("gptq g32", "qweight", shape({32, 8})),
              AllOf(HasSubstr("qweight` has the shape [32, 8]"), HasSubstr("it is [8, 32]")));
  EXPECT_THAT(with("gptq g32", "scales", shape({1, 64})),
              AllOf(HasSubstr("scales` has the shape [1, 64]"), HasSubstr("groups of 32"),
                    HasSubstr("it is [2, 32]")));
  EXPECT_THAT(with("packed 8 bits g64", "weight_scale", shape({1, 32})),
              HasSubstr("it is [32, 1]"));
  EXPECT_THAT(with("packed g32", "weight_shape",
                   [](test::TestTensor& t) {
                     const std::int64_t other[] = {64, 32};
                     std::memcpy(t.bytes.data(), other, sizeof other);
                   }),
              HasSubstr("says that the matrix is [64, 32]"));
  // Words hold eight codes.
  const QuantizedKind gptq = kind_named("gptq g32");
  EXPECT_THAT(refusal(gptq, quantized_example(gptq, kStem, 32, 64, 1).tensors, {kName, {32, 60}}),
              HasSubstr("cannot hold a matrix (32, 60)"));
}

TEST_F(QuantizedRowsTest, ColumnsInAnotherOrderAreRefused) {
  const TensorSpec matrix{kName, {32, 64}};
  const QuantizedKind kind = kind_named("gptq g32");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  set<std::int32_t>(tensors, kPart + "g_idx", 40, 0);
  EXPECT_THAT(
      refusal(kind, tensors, matrix),
      AllOf(HasSubstr("g_idx` puts column 40 into group 0 and not 1"), HasSubstr("desc_act")));
}

TEST_F(QuantizedRowsTest, ScalesZeroPointsAndCodesThatAreNoneAreNamed) {
  const TensorSpec matrix{kName, {32, 64}};
  const auto with = [&](const char* name, const std::function<void(TestTensors&)>& change) {
    const QuantizedKind kind = kind_named(name);
    TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
    change(tensors);
    return refusal(kind, tensors, matrix);
  };
  EXPECT_THAT(with("gptq g32",  // group 1 of row 5
                   [](TestTensors& t) { set<std::uint16_t>(t, kPart + "scales", 37, 0x7e00); }),
              HasSubstr("scales` has the scale nan of row 5, group 1"));
  EXPECT_THAT(
      with("awq g32", [](TestTensors& t) { set<std::uint16_t>(t, kPart + "scales", 31, 0x7c00); }),
      HasSubstr("scales` has the scale inf of row 31, group 0"));
  EXPECT_THAT(with("packed g32",
                   [](TestTensors& t) { set<std::uint16_t>(t, kPart + "weight_scale", 11, 0); }),
              HasSubstr("weight_scale` has the scale 0 of row 5, group 1, whose codes"));
  EXPECT_THAT(with("fp8 one scale",
                   [](TestTensors& t) {
                     set<float>(t, kPart + "weight_scale", 0,
                                -std::numeric_limits<float>::infinity());
                   }),
              HasSubstr("weight_scale` has the scale -inf of row 0, group 0"));
  EXPECT_THAT(with("fp8 blocks", [](TestTensors& t) { t.at(kPart + "weight").bytes[70] = '\x7f'; }),
              AllOf(HasSubstr(kName), HasSubstr("row 1")));
  EXPECT_THAT(with("gptq g64 sym",  // row 9
                   [](TestTensors& t) { set<std::uint32_t>(t, kPart + "qzeros", 1, 0x77777767); }),
              AllOf(HasSubstr("qzeros` has the zero point 7 of row 9, group 0"), HasSubstr("sym")));
  EXPECT_THAT(
      with("gptq 8 bits g16", [](TestTensors& t) { t.at(kPart + "qzeros").bytes[3] = '\xff'; }),
      HasSubstr("zero point 256 of row 3, group 0"));
}

TEST_F(QuantizedRowsTest, AScaleOfZeroIsFineWhereAllCodesAreZero) {
  for (const char* name : {"packed g32", "int8 rows asym", "float8 rows", "packed g128 asym"}) {
    const QuantizedKind kind = kind_named(name);
    TestTensors tensors = quantized_example(kind, kStem, 1, 16, 1).tensors;
    for (auto& [part, tensor] : tensors) {
      const bool packed = name[0] == 'p';
      if (part.ends_with("scale")) tensor.bytes.assign(tensor.bytes.size(), '\0');
      if (part.ends_with(".weight") || part.ends_with("packed") || part.ends_with("point")) {
        tensor.bytes.assign(tensor.bytes.size(), packed ? '\x88' : '\0');
      }
    }
    EXPECT_EQ(refusal(kind, tensors, {kName, {1, 16}}), "nothing was refused") << name;
  }
}

TEST_F(QuantizedRowsTest, ACodeOf15ForAZeroPointOfGptqIsTheZeroPoint16) {
  const QuantizedKind kind = kind_named("gptq rows v2");
  QuantizedKind classic = kind;
  classic.config["checkpoint_format"] = "gptq";
  TestTensors tensors = quantized_example(kind, kStem, 8, 8, 1).tensors;
  tensors.at(kPart + "qzeros").bytes.assign(4, '\xff');
  tensors.at(kPart + "qweight").bytes.assign(32, '\0');
  for (const auto& [of, zero] : {std::pair{kind, 15}, std::pair{classic, 16}}) {
    const auto source = open(of, tensors);
    const WeightFormat format = source->packed_format(kName).value();
    const auto packed = rows_of(*source, {kName, {8, 8}});
    std::vector<float> values(64);
    unpack_rows(packed.data(), 8, 8, format, DType::kFloat32, values.data());
    std::uint16_t scale;
    std::memcpy(&scale, tensors.at(kPart + "scales").bytes.data(), sizeof scale);
    EXPECT_EQ(values[0], static_cast<float>(-zero) * bfloat16_to_float(scale));
  }
}

TEST_F(QuantizedRowsTest, WithoutAConfigThatSaysHowTheyAreRefusedByName) {
  const TensorSpec matrix{kName, {32, 64}};
  for (const char* name : {"gptq g32", "packed g32"}) {
    const QuantizedKind kind = kind_named(name);
    open(kind, quantized_example(kind, kStem, 32, 64, 1).tensors);
    const auto source = open_checkpoint(directory.path(), "model.");
    EXPECT_THAT([&] { source->stored_dtype(kName); },
                ::testing::ThrowsMessage<CheckpointError>(
                    AllOf(HasSubstr(kName), HasSubstr("does not say how"))))
        << name;
  }
  const QuantizedKind fp8 = kind_named("fp8 blocks");
  open(fp8, quantized_example(fp8, kStem, 32, 64, 1).tensors);
  EXPECT_THAT([&] { open_checkpoint(directory.path(), "model.")->stored_dtype(kName); },
              ::testing::ThrowsMessage<CheckpointError>(HasSubstr("stored as `F8_E4M3`")));
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

TEST_F(QuantizedRowsTest, AMatrixThatIsThereTwiceIsRefused) {
  const QuantizedKind kind = kind_named("gptq g32");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  tensors[kPart + "weight"] = {"BF16", {32, 64}, std::string(2 * 32 * 64, '\0')};
  EXPECT_THAT(refusal(kind, tensors, {kName, {32, 64}}), HasSubstr("is there twice"));
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
