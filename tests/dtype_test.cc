#include "zero_infer/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The value of a 16-bit float by the definition of its fields, as a reference.
float from_fields(std::uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa != 0 ? std::numeric_limits<float>::quiet_NaN() : sign * kInfinity;
  }
  if (exponent == 0) {
    return sign * std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits);
  }
  return sign * std::ldexp(static_cast<float>(mantissa + (1 << mantissa_bits)),
                           exponent - bias - mantissa_bits);
}

TEST(DType, HasSizesAndNames) {
  EXPECT_EQ(size_of(DType::kFloat32), 4u);
  EXPECT_EQ(size_of(DType::kFloat16), 2u);
  EXPECT_EQ(size_of(DType::kBFloat16), 2u);
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    EXPECT_EQ(parse_dtype(name_of(dtype)), dtype);
  }
}

TEST(DType, IsReadByEachOfItsNamesInAnyCase) {
  for (const char* text : {"float32", "fp32", "f32", "FP32"}) {
    EXPECT_EQ(parse_dtype(text), DType::kFloat32) << text;
  }
  for (const char* text : {"float16", "fp16", "f16", "half", "F16", "Half"}) {
    EXPECT_EQ(parse_dtype(text), DType::kFloat16) << text;
  }
  for (const char* text : {"bfloat16", "bf16", "BF16"}) {
    EXPECT_EQ(parse_dtype(text), DType::kBFloat16) << text;
  }
}

TEST(DType, RefusesAnUnknownNameAndSaysWhichThereAre) {
  for (const char* text : {"", "int8", "float64", "bf 16", "float"}) {
    try {
      parse_dtype(text);
      FAIL() << text;
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find("bfloat16, float16 or float32"), std::string::npos);
    }
  }
}

TEST(Conversion, WidensEveryValueExactly) {
  for (std::uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    for (const auto& [value, expected] :
         {std::pair(float16_to_float(bits), from_fields(bits, 5, 10)),
          std::pair(bfloat16_to_float(bits), from_fields(bits, 8, 7))}) {
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(value)) << i;
      } else {
        ASSERT_EQ(std::bit_cast<std::uint32_t>(value), std::bit_cast<std::uint32_t>(expected)) << i;
      }
    }
  }
}

TEST(Conversion, RestoresEveryValueThatWasWidened) {
  for (std::uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    if (!std::isnan(from_fields(bits, 5, 10))) {
      ASSERT_EQ(float_to_float16(float16_to_float(bits)), bits);
    }
    if (!std::isnan(from_fields(bits, 8, 7))) {
      ASSERT_EQ(float_to_bfloat16(bfloat16_to_float(bits)), bits);
    }
  }
}

TEST(Conversion, RoundsHalfwayToTheEvenNeighbour) {
  // The middle between neighbours a and a + 1 goes to the one whose last bit is 0, a hair off the
  // middle to the nearer one. Both types, every positive finite pair.
  const auto check = [](auto narrow, auto widen, std::uint16_t largest) {
    for (std::uint16_t a = 0; a < largest; ++a) {
      const auto b = static_cast<std::uint16_t>(a + 1);
      const double middle = (static_cast<double>(widen(a)) + static_cast<double>(widen(b))) / 2;
      const auto exact = static_cast<float>(middle);
      ASSERT_EQ(narrow(std::nextafter(exact, 0.0f)), a);
      ASSERT_EQ(narrow(std::nextafter(exact, kInfinity)), b);
      if (static_cast<double>(exact) == middle) {
        ASSERT_EQ(narrow(exact), a % 2 == 0 ? a : b);
        ASSERT_EQ(narrow(-exact), (a % 2 == 0 ? a : b) | 0x8000);
      }
    }
  };
  check(float_to_float16, float16_to_float, 0x7bff);
  // Below 0x0080 the middles are float32 subnormals, which are exact too.
  check(float_to_bfloat16, bfloat16_to_float, 0x7f7f);
}

TEST(Conversion, TurnsWhatIsTooLargeIntoInfinity) {
  EXPECT_EQ(float_to_float16(65504.0f), 0x7bff);
  EXPECT_EQ(float_to_float16(65519.0f), 0x7bff);
  EXPECT_EQ(float_to_float16(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_float16(-1e6f), 0xfc00);
  EXPECT_EQ(float_to_bfloat16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(float_to_bfloat16(-kInfinity), 0xff80);
  EXPECT_EQ(float_to_float16(kInfinity), 0x7c00);
}

TEST(Conversion, KeepsEveryNanANan) {
  // 0x7f800001: the payload lies in the bits that bfloat16 cuts off; 0x7fffffff: rounding up wraps.
  for (std::uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xffffffffu, 0x7fc00000u, 0xff800001u}) {
    const auto value = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(value)))) << bits;
    EXPECT_TRUE(std::isnan(float16_to_float(float_to_float16(value)))) << bits;
  }
}

class ConvertAll : public testing::TestWithParam<std::pair<DType, DType>> {};

TEST_P(ConvertAll, EqualsTheConversionOfEachElementAndStaysInBounds) {
  const auto [from, to] = GetParam();
  constexpr std::size_t kCount = 257;
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 3);
  std::vector<unsigned char> source(kCount * size_of(from));
  std::vector<float> values(kCount);
  const auto store = [](DType dtype, float value, unsigned char* at) {
    if (dtype == DType::kFloat32) {
      std::memcpy(at, &value, 4);
    } else {
      const std::uint16_t bits =
          dtype == DType::kFloat16 ? float_to_float16(value) : float_to_bfloat16(value);
      std::memcpy(at, &bits, 2);
    }
  };
  for (std::size_t i = 0; i < kCount; ++i) {
    values[i] = normal(random);
    if (from == DType::kFloat16) values[i] = float16_to_float(float_to_float16(values[i]));
    if (from == DType::kBFloat16) values[i] = bfloat16_to_float(float_to_bfloat16(values[i]));
    store(from, values[i], source.data() + i * size_of(from));
  }
  std::vector<unsigned char> expected((kCount + 1) * size_of(to), 0xa5);
  std::vector<unsigned char> actual = expected;
  for (std::size_t i = 0; i < kCount; ++i) {
    store(to, values[i], expected.data() + i * size_of(to));
  }
  convert(source.data(), from, actual.data(), to, kCount);
  EXPECT_EQ(actual, expected);
}

std::vector<std::pair<DType, DType>> all_pairs() {
  std::vector<std::pair<DType, DType>> pairs;
  for (DType from : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (DType to : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
      pairs.emplace_back(from, to);
  }
  return pairs;
}

INSTANTIATE_TEST_SUITE_P(Pairs, ConvertAll, testing::ValuesIn(all_pairs()), [](const auto& info) {
  return std::string(name_of(info.param.first)) + "_to_" + std::string(name_of(info.param.second));
});

TEST(Conversion, OfTheSameTypeMayBeInPlaceAndMayBeEmpty) {
  std::vector<float> values = {1, -2, 3};
  convert(values.data(), DType::kFloat32, values.data(), DType::kFloat32, values.size());
  EXPECT_EQ(values, (std::vector<float>{1, -2, 3}));
  convert(values.data(), DType::kFloat32, values.data() + 1, DType::kBFloat16, 0);
  EXPECT_EQ(values, (std::vector<float>{1, -2, 3}));
}

}  // namespace
}  // namespace zi
