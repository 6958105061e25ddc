#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/instruction_set.h"
#include "packing/pack_rows.h"
#include "packing/packed_row.h"
#include "packing/unpack_rows.h"
#include "packing/valid_rows.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

constexpr WeightFormat kFormats[] = {
    kInt8Weights,
    kInt4Weights,
    {WeightFormat::Kind::kInt8, ScaleType::kFloat16, 32},
    {WeightFormat::Kind::kInt8, ScaleType::kBFloat16, 128},
    {WeightFormat::Kind::kInt4, ScaleType::kFloat32, 0},
    {WeightFormat::Kind::kInt4, ScaleType::kBFloat16, 16},
    {WeightFormat::Kind::kInt4, ScaleType::kFloat16, 128},
};
constexpr WeightFormat kFloat8Formats[] = {
    {WeightFormat::Kind::kFloat8, ScaleType::kFloat32, 128},
    {WeightFormat::Kind::kFloat8, ScaleType::kFloat16, 32},
    {WeightFormat::Kind::kFloat8, ScaleType::kBFloat16, 0},
};

std::vector<WeightFormat> all_formats() {
  std::vector<WeightFormat> all(std::begin(kFormats), std::end(kFormats));
  all.insert(all.end(), std::begin(kFloat8Formats), std::end(kFloat8Formats));
  return all;
}

/// Bell-shaped, as weights are.
std::vector<float> bell(std::size_t count, std::uint64_t seed, float width = 0.02f) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t bits = mix64(seed * 1000003 + i);
    float sum = 0;
    for (int part = 0; part < 4; ++part) {
      sum += static_cast<float>(bits >> (16 * part) & 0xffffu) / 65536.0f - 0.5f;
    }
    values[i] = sum * width;
  }
  return values;
}

std::vector<std::byte> packed_of(const std::vector<float>& values, std::int64_t cols,
                                 const WeightFormat& format) {
  const auto rows = static_cast<std::int64_t>(values.size()) / cols;
  std::vector<std::byte> packed(static_cast<std::size_t>(rows) * format.row_bytes(cols),
                                std::byte{0xff});
  EXPECT_EQ(pack_rows(values.data(), rows, cols, format, packed.data()), rows);
  return packed;
}

std::vector<float> unpacked(const std::vector<std::byte>& packed, std::int64_t rows,
                            std::int64_t cols, const WeightFormat& format) {
  std::vector<float> values(static_cast<std::size_t>(rows * cols));
  unpack_rows(packed.data(), rows, cols, format, DType::kFloat32, values.data());
  return values;
}

TEST(WeightFormat, ARowHasItsCodesThenScalesThenZeroPointsInMultiplesOf16BytesOr32) {
  EXPECT_EQ(kInt8Weights.row_bytes(1024), 1024u + 32u);
  EXPECT_EQ(kInt4Weights.row_bytes(1024), 512u + 64u);
  EXPECT_EQ(kInt4Weights.row_bytes(33), 32u + 16u);  // 17 bytes of codes; three scales
  const WeightFormat zeros(WeightFormat::Kind::kInt4, ScaleType::kFloat16, 64, true);
  EXPECT_EQ(zeros.scales_at(100), 64u);
  EXPECT_EQ(zeros.zeros_at(100), 64u + 4u);
  EXPECT_EQ(zeros.row_bytes(100), 64u + 32u);
  const WeightFormat one_scale(WeightFormat::Kind::kInt8, ScaleType::kBFloat16, 0);
  EXPECT_EQ(one_scale.row_bytes(4096), 4096u + 32u);
  EXPECT_EQ(WeightFormat(DType::kFloat16).row_bytes(33), 66u);
}

TEST(WeightFormat, DifferentFormatsHaveDifferentNames) {
  EXPECT_EQ(name_of(kInt8Weights), "int8g32f8");
  EXPECT_EQ(name_of(WeightFormat(DType::kBFloat16)), "bfloat16");
  EXPECT_EQ(name_of(WeightFormat(WeightFormat::Kind::kInt4, ScaleType::kBFloat16, 128, true)),
            "int4g128bf16z");
}

TEST(WeightFormat, ItsNameSaysAllOfAPackedOne) {
  for (const WeightFormat& format : all_formats()) {
    EXPECT_EQ(packed_format_named(name_of(format)), format) << name_of(format);
  }
  const WeightFormat zeros(WeightFormat::Kind::kInt4, ScaleType::kFloat16, 64, true);
  EXPECT_EQ(packed_format_named("int4g64f16z"), zeros);
  for (const char* none :
       {"", "bfloat16", "int4", "int4g", "int4g24f8", "int4g016f8", "int4g-16f8", "int4g16f8 ",
        "int4g16f8zz", "int5g16f8", "int4g16f9", "int4g16", "int4g99999999999999999999f8",
        "xint4g16f8", "int4g0f8", "float8g32f8", "float8f32z", "float8", "float16f32"}) {
    EXPECT_EQ(packed_format_named(none), std::nullopt) << none;
  }
}

TEST(ValidRows, StopAtTheRowWhoseScaleIsNone) {
  for (const WeightFormat& format : all_formats()) {
    const std::int64_t cols = 100;
    const auto good = packed_of(bell(4 * 100, 21), cols, format);
    EXPECT_EQ(valid_rows(good.data(), 4, cols, format), 4) << name_of(format);
    const std::size_t row = format.row_bytes(cols);
    for (std::int64_t group = 0; group < format.groups(cols); ++group) {
      auto bad = good;
      std::byte* const at = bad.data() + 2 * row + format.scales_at(cols) +
                            static_cast<std::size_t>(group) * size_of(format.scale);
      if (format.scale == ScaleType::kFloat8) {
        *at = std::byte{0x87};  // exponent 0
      } else {
        std::memset(at, 0xff, size_of(format.scale));  // NaN
      }
      EXPECT_EQ(valid_rows(bad.data(), 4, cols, format), 2) << name_of(format) << " " << group;
    }
  }
}

TEST(PackRows, ValuesThatCodesReachComeBackWithinHalfAStep) {
  for (const WeightFormat& format : kFormats) {
    for (const std::int64_t cols : {1, 16, 31, 32, 33, 100, 256, 1000}) {
      const std::vector<float> values = bell(static_cast<std::size_t>(3 * cols), 7);
      const auto packed = packed_of(values, cols, format);
      const auto back = unpacked(packed, 3, cols, format);
      const PackedRow row(format, cols);
      for (std::int64_t r = 0; r < 3; ++r) {
        for (std::int64_t c = 0; c < cols; ++c) {
          const auto i = static_cast<std::size_t>(r * cols + c);
          const float step = std::abs(
              row.scale(packed.data() + static_cast<std::size_t>(r) * row.bytes, c / row.group));
          // A scale may be chosen that has no code for the largest values.
          const float reach = (format.kind == WeightFormat::Kind::kInt4 ? 7 : 127) * step;
          EXPECT_LE(std::abs(back[i] - values[i]),
                    1.001f * std::max(step / 2, std::abs(values[i]) - reach))
              << describe(format) << ", " << cols << " columns, at " << r << ", " << c;
        }
      }
    }
  }
}

TEST(PackRows, TheScaleIsBetterThanTheOneThatReachesTheLargestValue) {
  const WeightFormat format(WeightFormat::Kind::kInt4, ScaleType::kFloat32, 32);
  const std::vector<float> values = bell(32 * 1000, 11);
  const auto back = unpacked(packed_of(values, 32, format), 1000, 32, format);
  double chosen = 0, plain = 0;
  for (std::size_t group = 0; group < 1000; ++group) {
    float largest = 0;
    for (std::size_t i = group * 32; i < group * 32 + 32; ++i) {
      largest = std::max(largest, std::abs(values[i]));
    }
    for (std::size_t i = group * 32; i < group * 32 + 32; ++i) {
      chosen += std::pow(back[i] - values[i], 2);
      const float step = largest / 7;
      plain += std::pow(std::round(values[i] / step) * step - values[i], 2);
    }
  }
  EXPECT_LT(chosen, 0.85 * plain);
}

TEST(PackRows, ARowsBytesDependOnItAlone) {
  for (const WeightFormat& format : all_formats()) {
    const std::int64_t cols = 100;
    const std::vector<float> values = bell(5 * 100, 3);
    const auto all = packed_of(values, cols, format);
    const std::size_t bytes = format.row_bytes(cols);
    for (std::size_t r = 0; r < 5; ++r) {
      const auto one = packed_of({values.begin() + static_cast<std::ptrdiff_t>(r * 100),
                                  values.begin() + static_cast<std::ptrdiff_t>(r * 100 + 100)},
                                 cols, format);
      EXPECT_EQ(std::memcmp(one.data(), all.data() + r * bytes, bytes), 0) << describe(format);
    }
  }
}

TEST(PackRows, ZerosAndValuesOnTheGridComeBackExactly) {
  for (const WeightFormat& format : kFormats) {
    const float highest = format.kind == WeightFormat::Kind::kInt4 ? 7 : 127;
    std::vector<float> values(128);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(static_cast<int>(i % 15) - 7) * 0x1p-6f;
      if (i % 16 == 0) values[i] = -(highest == 7 ? 8 : highest) * 0x1p-6f;
    }
    EXPECT_EQ(unpacked(packed_of(values, 128, format), 1, 128, format), values) << describe(format);
    const std::vector<float> none(128, 0.0f);
    EXPECT_EQ(unpacked(packed_of(none, 128, format), 1, 128, format), none) << describe(format);
  }
}

TEST(PackRows, StopsAtTheRowThatItCannotPack) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
    for (const WeightFormat& format : all_formats()) {
      if (bad == 1e30f && format.scale != ScaleType::kFloat16 &&
          format.scale != ScaleType::kFloat8) {
        continue;
      }
      for (const std::size_t column : {0u, 17u, 99u}) {
        std::vector<float> values = bell(400, 5);
        values[200 + column] = bad;
        std::vector<std::byte> packed(4 * format.row_bytes(100));
        EXPECT_EQ(pack_rows(values.data(), 4, 100, format, packed.data()), 2) << describe(format);
      }
    }
  }
}

TEST(UnpackRows, NarrowTypesAreTheFloatsRoundedOnce) {
  for (const WeightFormat& format : all_formats()) {
    for (const std::int64_t cols : {1, 15, 16, 17, 32, 77, 1100}) {
      const auto packed = packed_of(bell(static_cast<std::size_t>(cols * 4), 9), cols, format);
      const auto exact = unpacked(packed, 4, cols, format);
      for (const DType to : {DType::kFloat16, DType::kBFloat16}) {
        std::vector<std::uint16_t> expected(exact.size()), narrow(exact.size());
        convert(exact.data(), DType::kFloat32, expected.data(), to, exact.size());
        unpack_rows(packed.data(), 4, cols, format, to, narrow.data());
        EXPECT_EQ(narrow, expected) << describe(format) << ", " << cols << " columns";
      }
    }
  }
}

TEST(UnpackRows, ZeroPointsCountInEighths) {
  const WeightFormat format(WeightFormat::Kind::kInt4, ScaleType::kFloat32, 0, true);
  std::vector<std::byte> packed(format.row_bytes(3));
  packed[0] = std::byte{0x02};
  packed[2] = std::byte{0x07};
  const float scale = 0.5f;
  std::memcpy(packed.data() + format.scales_at(3), &scale, sizeof scale);
  packed[format.zeros_at(3)] = std::byte{43};
  std::vector<float> values(3);
  unpack_rows(packed.data(), 1, 3, format, DType::kFloat32, values.data());
  EXPECT_EQ(values, (std::vector<float>{(2 - 5.375f) / 2, (7 - 5.375f) / 2, -5.375f / 2}));
}

TEST(UnpackRows, ZeroPointsOfInt8AreSignedAndWhole) {
  const WeightFormat format(WeightFormat::Kind::kInt8, ScaleType::kFloat32, 16, true);
  std::vector<std::byte> packed(format.row_bytes(32));
  packed[0] = std::byte{0x80};
  packed[16] = std::byte{0x7f};
  const float scales[] = {0.5f, 2.0f};
  std::memcpy(packed.data() + format.scales_at(32), scales, sizeof scales);
  packed[format.zeros_at(32)] = std::byte{0x7f};
  packed[format.zeros_at(32) + 1] = std::byte{0x80};
  std::vector<float> values(32);
  unpack_rows(packed.data(), 1, 32, format, DType::kFloat32, values.data());
  EXPECT_EQ(values[0], (-128 - 127) / 2.0f);
  EXPECT_EQ(values[1], -127 / 2.0f);
  EXPECT_EQ(values[16], (127 + 128) * 2.0f);
}

/// Sign, 4 bits of exponent, 3 of mantissa.
float value_of_float8(int code) {
  const int exponent = code / 8 % 16, mantissa = code % 8;
  const double size =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>(code < 128 ? size : -size);
}

TEST(UnpackRows, CodesOfFloat8AreNumbersOf8Bits) {
  const WeightFormat format(WeightFormat::Kind::kFloat8, ScaleType::kFloat32, 0);
  std::vector<std::byte> packed(format.row_bytes(256));
  for (std::size_t i = 0; i < 256; ++i) {
    packed[i] = static_cast<std::byte>(i % 128 == kNoFloat8Code ? 0 : i);
  }
  const float scale = 0.3f;
  std::memcpy(packed.data() + format.scales_at(256), &scale, sizeof scale);
  EXPECT_EQ(valid_rows(packed.data(), 1, 256, format), 1);
  std::vector<float> values(256);
  unpack_rows(packed.data(), 1, 256, format, DType::kFloat32, values.data());
  for (std::size_t i = 0; i < 256; ++i) {
    EXPECT_EQ(values[i], value_of_float8(std::to_integer<int>(packed[i])) * scale) << i;
  }
}

TEST(ValidRows, StopAtACodeOfFloat8ThatIsNoNumber) {
  for (const WeightFormat& format : kFloat8Formats) {
    const auto good = packed_of(bell(3 * 100, 21), 100, format);
    for (const std::byte bad : {std::byte{0x7f}, std::byte{0xff}}) {
      for (const std::size_t column : {0u, 99u}) {
        auto rows = good;
        rows[format.row_bytes(100) + column] = bad;
        EXPECT_EQ(valid_rows(rows.data(), 3, 100, format), 1) << column;
      }
      auto rows = good;
      rows[format.row_bytes(100) + 100] = bad;  // behind the columns
      EXPECT_EQ(valid_rows(rows.data(), 3, 100, format), 3);
    }
  }
}

TEST(PackRows, Float8TakesTheNearestCodeAndTheEvenOneOfTwo) {
  const WeightFormat format(WeightFormat::Kind::kFloat8, ScaleType::kFloat32, 0);
  std::vector<float> values, wanted;
  const float step = 0x1p-12f;  // 448 steps are the largest value: the scale
  for (int sign = 0; sign < 256; sign += 128) {
    for (int code = 0; code + 1 < static_cast<int>(kNoFloat8Code); ++code) {
      const float here = value_of_float8(sign + code), next = value_of_float8(sign + code + 1);
      for (const float part : {0.0f, 0.25f, 0.5f, 0.75f}) {
        values.push_back((here + (next - here) * part) * step);
        wanted.push_back((part < 0.5f || (part == 0.5f && code % 2 == 0) ? here : next) * step);
      }
    }
    values.push_back(value_of_float8(sign + kNoFloat8Code - 1) * step);
    wanted.push_back(values.back());
  }
  const auto cols = static_cast<std::int64_t>(values.size());
  EXPECT_EQ(unpacked(packed_of(values, cols, format), 1, cols, format), wanted);
}

TEST(PackRows, ZeroPointsAreInTheMiddle) {
  for (const WeightFormat::Kind kind : {WeightFormat::Kind::kInt4, WeightFormat::Kind::kInt8}) {
    const WeightFormat with(kind, ScaleType::kFloat16, 64, true);
    const WeightFormat without(kind, ScaleType::kFloat16, 64);
    const std::vector<float> values = bell(4 * 100, 19);
    EXPECT_EQ(unpacked(packed_of(values, 100, with), 4, 100, with),
              unpacked(packed_of(values, 100, without), 4, 100, without));
  }
}

TEST(PackRows, CodesOfInt4StandInPairsHalfAWordApart) {
  std::vector<float> values(32);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = i % 2 == 0 ? -8.0f : static_cast<float>(i % 8);
  }
  const WeightFormat int4(WeightFormat::Kind::kInt4, ScaleType::kFloat32, 0);
  const auto packed = packed_of(values, 32, int4);
  std::uint32_t word = 0;
  std::memcpy(&word, packed.data() + 4, sizeof word);
  EXPECT_EQ(word, 0xfdb90000u);  // codes of -8 are 0, of 1, 3, 5 and 7 9, 11, 13 and 15
}

TEST(Int4Weights, AreBFloat16sExactly) {
  const auto packed = packed_of(bell(1024, 13), 1024, kInt4Weights);
  std::vector<float> exact(1024);
  std::vector<std::uint16_t> narrow(1024);
  unpack_rows(packed.data(), 1, 1024, kInt4Weights, DType::kFloat32, exact.data());
  unpack_rows(packed.data(), 1, 1024, kInt4Weights, DType::kBFloat16, narrow.data());
  for (std::size_t i = 0; i < exact.size(); ++i) EXPECT_EQ(bfloat16_to_float(narrow[i]), exact[i]);
}

TEST(InstructionSets, AreLimitedByNameAndUnknownNamesAreRefused) {
  EXPECT_EQ(at_most(InstructionSet::kAmx, "avx2"), InstructionSet::kAvx2);
  EXPECT_EQ(at_most(InstructionSet::kAvx512, "amx"), InstructionSet::kAvx512);
  EXPECT_EQ(name_of(at_most(InstructionSet::kAmx, "avx512_bf16")), "avx512_bf16");
  EXPECT_THROW(at_most(InstructionSet::kAmx, "sse"), ConfigError);
}

}  // namespace
}  // namespace zi
