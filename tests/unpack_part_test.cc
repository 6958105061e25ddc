#include "packing/unpack_part.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "packing/packed_row.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

using Kind = WeightFormat::Kind;

/// Every instruction set writes the same values of parts of these rows, and nothing beside them.
void expect_equal_bits(const WeightFormat& format, const std::vector<std::byte>& packed,
                       std::int64_t cols) {
  const PackedRow row(format, cols);
  const auto rows = static_cast<std::int64_t>(packed.size() / row.bytes);
  for (const auto& [first, columns] : {std::pair<std::int64_t, std::int64_t>{0, cols},
                                       {32, 128},
                                       {64, 64},
                                       {160, 5},
                                       {256, cols - 256}}) {
    const PackedPart part{packed.data(), rows, first, columns};
    const std::int64_t stride = columns + 3;
    for (const DType to : {DType::kBFloat16, DType::kFloat16}) {
      const auto run = [&](InstructionSet set) {
        std::vector<std::uint16_t> out(static_cast<std::size_t>(rows * stride), 0xabcd);
        unpack_part(format, set, to)(row, part, out.data(), stride);
        return out;
      };
      const auto want = run(InstructionSet::kBaseline);
      EXPECT_EQ(want[static_cast<std::size_t>(columns)], 0xabcd) << "written beyond the columns";
      for (int set = 1; set <= static_cast<int>(instruction_set()); ++set) {
        EXPECT_EQ(run(static_cast<InstructionSet>(set)), want)
            << name_of(format) << " to " << name_of(to) << ", columns from " << first << " of "
            << cols << ", with " << name_of(static_cast<InstructionSet>(set));
      }
    }
  }
}

TEST(UnpackPart, WritesTheSameBitsWithEveryInstructionSetForEachCodeAndScale) {
  // A row for each byte of a scale that rows have, with each code in turn, in an odd place.
  for (const WeightFormat& format : {kInt8Weights, kInt4Weights}) {
    const bool int4 = format.kind == WeightFormat::Kind::kInt4;
    constexpr std::int64_t kCols = 32 * 9 + 21;
    const PackedRow row(format, kCols);
    std::vector<std::byte> packed;
    for (int scale = 0; scale < 256; ++scale) {
      if (scale % 128 < kLeastFloat8) continue;
      std::vector<std::byte> bytes(row.bytes, static_cast<std::byte>(scale));
      for (std::size_t i = 0; i < row.scales_at; ++i) {
        const auto code = static_cast<int>(i) + scale;  // all bytes within a row of int8
        bytes[i] = static_cast<std::byte>(int4 ? code % 16 * 16 + (code / 16 + scale) % 16 : code);
      }
      if (int4) bytes[row.scales_at + 1] = static_cast<std::byte>(kLeastFloat8);  // not all alike
      packed.insert(packed.end(), bytes.begin(), bytes.end());
    }
    expect_equal_bits(format, packed, kCols);
  }
}

/// Scales of weights and, in one row of sixteen, one such as makes values subnormal, infinite,
/// negative or zero: ordinary ones on both sides of a bound are among ordinary ones.
float scale_of(std::int64_t row, std::int64_t group) {
  constexpr float kOdd[] = {0x1p-140f,  -0x1.8p-126f, 0x1.5p-118f, 0x1p-112f,  0x1.9p-101f,
                            0x1.1p-99f, 0x1.3p99f,    0x1.7p100f,  0x1.7p112f, 0x1p120f,
                            0x1.1p121f, -0x1.9p127f,  0.0f,        -0x1.1p-3f};
  const std::uint64_t bits = mix64(static_cast<std::uint64_t>(row * 1000 + group));
  if (row % 16 == 5) return kOdd[(row / 16 + group) % std::ssize(kOdd)];
  return 0.001f + static_cast<float>(bits % 4096) / 65536;
}

/// Rows of random codes and zero points, and scales of `scale_of`, as far as their type has them.
std::vector<std::byte> random_rows(const WeightFormat& format, std::int64_t rows,
                                   std::int64_t cols) {
  const PackedRow row(format, cols);
  std::vector<std::byte> packed(static_cast<std::size_t>(rows) * row.bytes);
  for (std::size_t i = 0; i < packed.size(); ++i) {
    auto byte = static_cast<unsigned>(mix64(i + 77) & 0xffu);
    const bool code = i % row.bytes < row.scales_at;
    if (format.kind == Kind::kFloat8 && code && byte % 128 == kNoFloat8Code) byte = 0;
    packed[i] = static_cast<std::byte>(byte);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    std::byte* const scales =
        packed.data() + static_cast<std::size_t>(r) * row.bytes + row.scales_at;
    for (std::int64_t g = 0; g < row.groups; ++g) {
      const float scale = scale_of(r, g);
      std::byte* const at = scales + static_cast<std::size_t>(g) * row.scale_bytes;
      switch (format.scale) {
        case ScaleType::kFloat32:
          std::memcpy(at, &scale, sizeof scale);
          break;
        case ScaleType::kFloat16: {
          const std::uint16_t bits = float_to_float16(scale);
          std::memcpy(at, &bits, sizeof bits);
          break;
        }
        case ScaleType::kBFloat16: {
          const std::uint16_t bits = float_to_bfloat16(scale);
          std::memcpy(at, &bits, sizeof bits);
          break;
        }
        case ScaleType::kFloat8:
          *at |= static_cast<std::byte>(kLeastFloat8);  // any scale that is used
          break;
      }
    }
  }
  return packed;
}

TEST(UnpackPart, OfAnyFormatWritesTheSameBitsWithEveryInstructionSet) {
  constexpr std::int64_t kRows = 16 * 14 + 3;
  for (const std::int64_t cols : {32 * 9 + 21, 32 * 9 + 5}) {
    for (const WeightFormat& format :
         std::initializer_list<WeightFormat>{{Kind::kInt4, ScaleType::kFloat16, 128, true},
                                             {Kind::kInt4, ScaleType::kFloat16, 128},
                                             {Kind::kInt4, ScaleType::kFloat32, 0},
                                             {Kind::kInt4, ScaleType::kBFloat16, 48, true},
                                             {Kind::kInt4, ScaleType::kFloat8, 32},
                                             {Kind::kInt8, ScaleType::kBFloat16, 0},
                                             {Kind::kInt8, ScaleType::kFloat32, 16, true},
                                             {Kind::kInt8, ScaleType::kFloat16, 128, true},
                                             {Kind::kInt8, ScaleType::kFloat8, 64},
                                             {Kind::kFloat8, ScaleType::kFloat32, 128},
                                             {Kind::kFloat8, ScaleType::kFloat16, 80},
                                             {Kind::kFloat8, ScaleType::kBFloat16, 0}}) {
      expect_equal_bits(format, random_rows(format, kRows, cols), cols);
    }
  }
}

}  // namespace
}  // namespace zi
