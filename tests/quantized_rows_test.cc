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
  constexpr std::int64_t kRows = 4096, kCols = 2048;
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
  EXPECT_THAT(with("fp8 one scale",
                   [](TestTensors& t) {
                     set<float>(t, kPart + "weight_scale", 0,
                                -std::numeric_limits<float>::infinity());
                   }),
              HasSubstr("weight_scale` has the scale -inf of row 0, group 0"));
  EXPECT_THAT(with("fp8 blocks", [](TestTensors& t) { t.at(kPart + "weight").bytes[70] = '\x7f'; }),
              AllOf(HasSubstr("model.safetensors: tensor `" + kPart + "weight` has the code 0x7f"),
                    HasSubstr("of row 1, column 6,")));
  EXPECT_THAT(with("gptq g64 sym",  // row 9
                   [](TestTensors& t) { set<std::uint32_t>(t, kPart + "qzeros", 1, 0x77777767); }),
              AllOf(HasSubstr("qzeros` has the zero point 7 of row 9, group 0"), HasSubstr("sym")));
}

TEST_F(QuantizedRowsTest, AScaleWithWhichLargeCodesAreNoFloatsIsNamed) {
  // Just above and below the largest float32 over the largest code.
  for (const auto& [name, part, most] : {std::tuple{"fp8 one scale", "weight_scale", 448.0f},
                                         std::tuple{"gptq 8 bits g16", "scales", 255.0f},
                                         std::tuple{"packed rows", "weight_scale", 8.0f},
                                         std::tuple{"int8 one scale", "weight_scale", 128.0f}}) {
    const QuantizedKind kind = kind_named(name);
    TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
    const float limit = std::numeric_limits<float>::max() / most;
    set<float>(tensors, kPart + part, 0, limit * 1.001f);
    EXPECT_THAT(refusal(kind, tensors, {kName, {32, 64}}),
                AllOf(HasSubstr(kPart + part + "` has the scale "),
                      HasSubstr("of row 0, group 0, with which large codes are no float32")))
        << name;
    set<float>(tensors, kPart + part, 0, limit * 0.999f);
    EXPECT_EQ(refusal(kind, tensors, {kName, {32, 64}}), "nothing was refused") << name;
  }
}

/// Zeroes the scales of rows [first, end).
void clear_scales(const QuantizedKind& kind, TestTensors& tensors, std::size_t first,
                  std::size_t end) {
  const bool turned = kind.config.at("quant_method") == "gptq";
  const std::string name = kPart + (turned ? "scales" : kind.scale_name);
  const std::size_t groups = static_cast<std::size_t>(tensors.at(name).shape[turned ? 0 : 1]);
  const std::size_t rows = static_cast<std::size_t>(tensors.at(name).shape[turned ? 1 : 0]);
  for (std::size_t row = first; row < end; ++row) {
    for (std::size_t g = 0; g < groups; ++g) {
      set<std::uint16_t>(tensors, name, turned ? g * rows + row : row * groups + g, 0);
    }
  }
}

TEST_F(QuantizedRowsTest, ScalesOfZeroAreFineInAGroupOrAFewRowsAndAHoleInMany) {
  for (const char* name : {"packed g32", "gptq g32", "int8 rows", "float8 rows"}) {
    SCOPED_TRACE(name);
    const QuantizedKind kind = kind_named(name);
    const TensorSpec matrix{kName, {40, 64}};
    const QuantizedExample example = quantized_example(kind, kStem, 40, 64, 1);
    TestTensors tensors = example.tensors;
    clear_scales(kind, tensors, 3, 18);
    clear_scales(kind, tensors, 19, 34);
    const auto source = open(kind, tensors);
    const auto packed = rows_of(*source, matrix);
    std::vector<float> values(example.values.size());
    unpack_rows(packed.data(), 40, 64, source->packed_format(kName).value(), DType::kFloat32,
                values.data());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t row = i / 64;
      const bool dead = (row >= 3 && row < 18) || (row >= 19 && row < 34);
      EXPECT_EQ(values[i], dead ? 0 : example.values[i]) << i;
    }
    clear_scales(kind, tensors, 18, 19);
    EXPECT_THAT(refusal(kind, tensors, matrix),
                HasSubstr("has only scales of 0 for rows 3 to 18, whose codes are not"));
    // A matrix of fewer rows.
    tensors = quantized_example(kind, kStem, 8, 64, 1).tensors;
    clear_scales(kind, tensors, 0, 7);
    EXPECT_EQ(refusal(kind, tensors, {kName, {8, 64}}), "nothing was refused");
    clear_scales(kind, tensors, 0, 8);
    EXPECT_THAT(refusal(kind, tensors, {kName, {8, 64}}), HasSubstr("for rows 0 to 7,"));
  }
  // One group of a row whose others have scales.
  const QuantizedKind kind = kind_named("packed g32");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  for (std::size_t row = 0; row < 32; ++row) {
    set<std::uint16_t>(tensors, kPart + "weight_scale", 2 * row + 1, 0);
  }
  EXPECT_EQ(refusal(kind, tensors, {kName, {32, 64}}), "nothing was refused");
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

TEST_F(QuantizedRowsTest, AZeroPointOfGptqThatIsStoredAsLessThanNoneIsRefused) {
  const TensorSpec matrix{kName, {8, 16}};
  for (const auto& [name, read] :
       {std::pair{"gptq g32", "0 or as 16"}, std::pair{"gptq 8 bits g16", "0 or as 256"}}) {
    const QuantizedKind kind = kind_named(name);
    TestTensors tensors = quantized_example(kind, kStem, 8, 16, 1).tensors;
    tensors.at(kPart + "qzeros").bytes[3] = '\xff';
    EXPECT_THAT(refusal(kind, tensors, matrix),
                AllOf(HasSubstr("qzeros` has a zero point of row "),
                      HasSubstr(std::string("stored as -1, which programs read as ") + read)));
    // The later format stores it as it is.
    QuantizedKind v2 = kind;
    v2.config["checkpoint_format"] = "gptq_v2";
    EXPECT_EQ(refusal(v2, tensors, matrix), "nothing was refused");
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

TEST_F(QuantizedRowsTest, ZeroPointsThatAreNotPackedComeWithAdvice) {
  const QuantizedKind kind = kind_named("packed g128 asym");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  tensors[kPart + "weight_zero_point"] = {"I8", {32, 1}, std::string(32, '\0')};
  EXPECT_THAT(refusal(kind, tensors, {kName, {32, 64}}),
              AllOf(HasSubstr("weight_zero_point` is stored as `I8`"),
                    HasSubstr("save the checkpoint again")));
}

TEST_F(QuantizedRowsTest, AnOrderThatConfigAsksForIsThere) {
  const TensorSpec matrix{kName, {32, 64}};
  QuantizedKind gptq = kind_named("gptq g32"), packed = kind_named("packed g32");
  gptq.config["desc_act"] = true;
  packed.config["config_groups"]["group_0"]["weights"]["actorder"] = "group";
  TestTensors tensors = quantized_example(gptq, kStem, 32, 64, 1).tensors;
  EXPECT_EQ(refusal(gptq, tensors, matrix), "nothing was refused");
  ASSERT_EQ(tensors.erase(kPart + "g_idx"), 1u);
  EXPECT_THAT(refusal(gptq, tensors, matrix), HasSubstr("and no order of its columns"));
  // Whole rows have none.
  gptq.config["group_size"] = -1;
  tensors = quantized_example(gptq, kStem, 32, 64, 1).tensors;
  tensors.erase(kPart + "g_idx");
  EXPECT_EQ(refusal(gptq, tensors, matrix), "nothing was refused");
  EXPECT_THAT(refusal(packed, quantized_example(packed, kStem, 32, 64, 1).tensors, matrix),
              HasSubstr("and no order of its columns"));
}

TEST_F(QuantizedRowsTest, APartThatIsOfNoQuantizedMatrixIsRefused) {
  const TensorSpec matrix{kName, {32, 64}};
  const test::TestTensor part{"F16", {64}, std::string(128, '\0')};
  const test::TestTensor elements{"BF16", {32, 64}, std::string(2 * 32 * 64, '\0')};
  const std::string other = "model.layers.1.mlp.down_proj";
  for (const char* name : {"gptq g32", "awq g32", "packed g32", "int8 rows", "float8 rows"}) {
    const QuantizedKind kind = kind_named(name);
    for (const std::string end :
         {".qzeros", ".scales", ".g_idx", ".weight_scale", ".weight_scale_inv",
          ".weight_zero_point", ".weight_g_idx", ".weight_shape", ".weight_scale_2",
          ".weight_global_scale", ".pre_quant_scale"}) {
      SCOPED_TRACE(name + end);
      TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
      tensors[other + end] = part;
      EXPECT_THAT(refusal(kind, tensors, matrix),
                  AllOf(HasSubstr("model.safetensors: tensor `" + other + end + "` "),
                        HasSubstr(name == std::string("awq g32") && end == ".scales"
                                      ? "scaled activations are not supported"
                                      : "without codes")));
      tensors[other + ".weight"] = elements;
      EXPECT_THAT(refusal(kind, tensors, matrix),
                  AllOf(HasSubstr("tensor `" + other + end + "` "),
                        HasSubstr("but `" + other + ".weight` is stored as `BF16`")));
    }
    TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
    tensors[kPart + "weight_global_scale"] = part;
    EXPECT_THAT(refusal(kind, tensors, matrix), HasSubstr("does not know it there")) << name;
  }
  // Without a config, too.
  test::write_tensors(directory.path() / "model.safetensors",
                      {{other + ".weight", elements}, {other + ".weight_scale", part}});
  EXPECT_THAT([&] { open_checkpoint(directory.path(), "model."); },
              ::testing::ThrowsMessage<CheckpointError>(HasSubstr("is stored as `BF16`")));
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

TEST_F(QuantizedRowsTest, VectorsThatAreQuantizedAreRefused) {
  const QuantizedKind kind = kind_named("fp8 one scale");
  TestTensors tensors = quantized_example(kind, kStem, 32, 64, 1).tensors;
  tensors["model.layers.0.input_layernorm.weight"] = {"F8_E4M3", {64}, std::string(64, '8')};
  tensors["model.layers.0.input_layernorm.weight_scale"] = {"F32", {}, std::string(4, '\0')};
  const auto source = open(kind, tensors);
  std::vector<float> values(64);
  EXPECT_THAT(
      [&] {
        source->read({"layers.0.input_layernorm.weight", {64}}, 0, 64, DType::kFloat32,
                     values.data());
      },
      ::testing::ThrowsMessage<CheckpointError>(
          AllOf(HasSubstr("model.safetensors: "),
                HasSubstr("norms, biases and other vectors that are quantized"))));
}

/// Each matrix is of the file of its codes.
TEST_F(QuantizedRowsTest, TheFileThatIsMeantIsNamed) {
  const QuantizedKind kind = kind_named("int8 rows");
  nlohmann::json map;
  for (const int layer : {0, 1}) {
    const std::string file = fmt::format("model-{}.safetensors", layer);
    const auto example =
        quantized_example(kind, fmt::format("model.layers.{}.mlp.down_proj", layer), 32, 64, 1);
    test::write_tensors(directory.path() / file, example.tensors);
    for (const auto& [name, tensor] : example.tensors) map[name] = file;
  }
  test::write_text(directory.path() / "model.safetensors.index.json",
                   nlohmann::json{{"weight_map", map}}.dump());
  const auto source =
      open_checkpoint(directory.path(), "model.", test::quantization_of(kind.config));
  for (const int layer : {0, 1}) {
    const TensorSpec matrix{fmt::format("layers.{}.mlp.down_proj.weight", layer), {32, 64}};
    const auto named = ::testing::ThrowsMessage<CheckpointError>(
        HasSubstr(fmt::format("model-{}.safetensors: ", layer)));
    EXPECT_THAT([&] { source->read_packed(matrix, 32, 1, nullptr); }, named);
    EXPECT_THAT([&] { source->read(matrix, 0, 1, DType::kFloat32, nullptr); }, named);
  }
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
  // Some programs say it in a file of their own.
  const QuantizedKind gptq = kind_named("gptq g32");
  open(gptq, quantized_example(gptq, kStem, 32, 64, 1).tensors);
  test::write_text(directory.path() / "quantize_config.json", gptq.config.dump());
  EXPECT_THAT([&] { open_checkpoint(directory.path(), "model.")->stored_dtype(kName); },
              ::testing::ThrowsMessage<CheckpointError>(
                  HasSubstr("copy what quantize_config.json holds into config.json")));
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
