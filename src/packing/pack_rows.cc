#include "packing/pack_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/simd_clones.h"
#include "packing/group_codes.h"
#include "packing/packed_row.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

/// Sums are cut into this many, and added in one tree: their bits do not depend on how a compiler
/// makes vectors of them.
constexpr std::int64_t kLanes = 16;
/// Scales that are tried: the largest value takes the outermost code, or would take one up to this
/// many steps of kScaleStep beyond or before it.
constexpr int kScaleSteps = 4;
constexpr float kScaleStep = 0.25f;

ZI_INLINE float sum_of(const float (&lanes)[kLanes]) {
  float sums[kLanes];
  std::copy_n(lanes, kLanes, sums);
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int64_t i = 0; i < width; ++i) sums[i] += sums[i + width];
  }
  return sums[0];
}

/// Products of a group's values with the codes that `inverse` gives them, and of those with
/// themselves.
struct Fit {
  float value_code = 0;
  float code_code = 0;
};

ZI_INLINE Fit fit(const float* values, std::int64_t count, float inverse, const Codes& codes) {
  float value_code[kLanes] = {};
  float code_code[kLanes] = {};
  const std::int64_t whole = count / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const float code = code_of(values[i + lane], inverse, codes);
      value_code[lane] += values[i + lane] * code;
      code_code[lane] += code * code;
    }
  }
  for (std::int64_t i = whole; i < count; ++i) {
    const float code = code_of(values[i], inverse, codes);
    value_code[i - whole] += values[i] * code;
    code_code[i - whole] += code * code;
  }
  return {sum_of(value_code), sum_of(code_code)};
}

/// The value furthest from zero, the first of equals; NaN where there is one.
ZI_INLINE float extreme_of(const float* values, std::int64_t count) {
  float extreme = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (!(std::abs(values[i]) <= std::abs(extreme))) extreme = values[i];
    if (values[i] != values[i]) return values[i];
  }
  return extreme;
}

ZI_SIMD_CLONES float best_scale(const float* values, std::int64_t count, float extreme,
                                const Codes& codes) {
  // Where codes reach further below zero, the value furthest from it is to have one of those.
  const float reach = codes.lowest == -codes.highest ? std::abs(extreme) : -extreme;
  float best = 0;
  float best_score = -1;
  for (int step = -kScaleSteps; step <= kScaleSteps; ++step) {
    const float outermost = kScaleStep * static_cast<float>(step) - codes.lowest;
    const Fit f = fit(values, count, outermost / reach, codes);
    if (!(f.code_code > 0)) continue;
    // Of all scales for these codes value_code / code_code has the least squared error, which is
    // lower by this than with zeros in place of the codes.
    const float score = f.value_code * f.value_code / f.code_code;
    if (score > best_score) {
      best_score = score;
      best = f.value_code / f.code_code;
    }
  }
  return best;
}

/// As scales of a type are stored and read back.
float stored_scale(float scale, ScaleType type, std::byte* at) {
  if (type == ScaleType::kFloat32) {
    std::memcpy(at, &scale, sizeof scale);
    return scale;
  }
  const std::uint16_t bits =
      type == ScaleType::kFloat16 ? float_to_float16(scale) : float_to_bfloat16(scale);
  std::memcpy(at, &bits, sizeof bits);
  return type == ScaleType::kFloat16 ? float16_to_float(bits) : bfloat16_to_float(bits);
}

/// Groups whose float8 scales are searched side by side, and columns of each: a vector's lanes are
/// groups, so that a group's sum has one order, that of its columns.
constexpr std::int64_t kGroupsAtOnce = 16;
constexpr std::int64_t kMostFloat8Columns = 32;
constexpr std::int32_t kNoFloat8 = 256;

/// Values of groups by column: (kMostFloat8Columns, kGroupsAtOnce), zeros where there are none.
struct GroupColumns {
  alignas(64) float values[kMostFloat8Columns][kGroupsAtOnce];
  std::int64_t columns = 0;
};

/// For each group the byte of the scale with the least sum of squared errors; kNoFloat8 where no
/// scale is large enough.
template <WeightFormat::Kind kKind>
ZI_INLINE void best_float8(const GroupColumns& in, std::int32_t (&best)[kGroupsAtOnce]) {
  constexpr Codes kCodes = codes_of(kKind);
  float largest[kGroupsAtOnce] = {};
  for (std::int64_t c = 0; c < in.columns; ++c) {
    for (std::int64_t g = 0; g < kGroupsAtOnce; ++g) {
      const float magnitude = std::abs(in.values[c][g]);
      largest[g] = magnitude > largest[g] ? magnitude : largest[g];
    }
  }
  std::int32_t first[kGroupsAtOnce];
  std::int32_t last[kGroupsAtOnce];
  float least[kGroupsAtOnce];
  std::int32_t most = 0;
  for (std::int64_t g = 0; g < kGroupsAtOnce; ++g) {
    first[g] = float8_below(largest[g] * (1 / kCodes.most), kKind);
    const std::int32_t wanted = float8_below(largest[g] * (1 / kCodes.least), kKind);
    last[g] = wanted < kLastFloat8 ? wanted : kLastFloat8;
    best[g] = first[g] <= kLastFloat8 ? first[g] : kNoFloat8;
    least[g] = std::numeric_limits<float>::infinity();
    most = last[g] - first[g] > most ? last[g] - first[g] : most;
  }
  for (std::int32_t step = 0; step <= most; ++step) {
    for (std::int32_t sign = 0; sign < float8_signs(kKind); ++sign) {
      float scale[kGroupsAtOnce];
      float inverse[kGroupsAtOnce];
      float errors[kGroupsAtOnce] = {};
      for (std::int64_t g = 0; g < kGroupsAtOnce; ++g) {
        const std::int32_t byte = first[g] + step < last[g] ? first[g] + step : last[g];
        scale[g] = float8_to_float(static_cast<std::uint32_t>(byte + 128 * sign), kKind);
        inverse[g] = 1 / scale[g];
      }
      for (std::int64_t c = 0; c < in.columns; ++c) {
        for (std::int64_t g = 0; g < kGroupsAtOnce; ++g) {
          const float value = in.values[c][g];
          const float error = value - code_of(value, inverse[g], kCodes) * scale[g];
          errors[g] += error * error;
        }
      }
      for (std::int64_t g = 0; g < kGroupsAtOnce; ++g) {
        const bool better = errors[g] < least[g] && first[g] + step <= last[g];
        least[g] = better ? errors[g] : least[g];
        best[g] = better ? first[g] + step + 128 * sign : best[g];
      }
    }
  }
}

ZI_SIMD_CLONES void best_float8_of_int8(const GroupColumns& in,
                                        std::int32_t (&best)[kGroupsAtOnce]) {
  best_float8<WeightFormat::Kind::kInt8>(in, best);
}
ZI_SIMD_CLONES void best_float8_of_int4(const GroupColumns& in,
                                        std::int32_t (&best)[kGroupsAtOnce]) {
  best_float8<WeightFormat::Kind::kInt4>(in, best);
}

/// Writes the scales of a row's groups; false where one is too large.
bool write_float8_scales(const float* values, const PackedRow& row, std::byte* out) {
  for (std::int64_t g = 0; g < row.groups; g += kGroupsAtOnce) {
    GroupColumns groups = {.values = {}, .columns = row.group};
    const std::int64_t count = std::min(kGroupsAtOnce, row.groups - g);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t first = (g + i) * row.group;
      const std::int64_t last = std::min(first + row.group, row.cols);
      for (std::int64_t c = first; c < last; ++c) groups.values[c - first][i] = values[c];
    }
    std::int32_t best[kGroupsAtOnce];
    if (row.format.kind == WeightFormat::Kind::kInt4) {
      best_float8_of_int4(groups, best);
    } else {
      best_float8_of_int8(groups, best);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      if (best[i] == kNoFloat8) return false;
      out[row.scales_at + static_cast<std::size_t>(g + i)] = static_cast<std::byte>(best[i]);
    }
  }
  return true;
}

/// Codes less zero of a group, in the order of its columns.
ZI_SIMD_CLONES void make_codes(const float* values, std::int64_t count, float inverse,
                               const Codes& codes, std::int8_t* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<std::int8_t>(code_of(values[i], inverse, codes));
  }
}

/// Puts codes into their blocks.
void write_int4(const std::int8_t* codes, std::int64_t blocks, std::byte* out) {
  for (std::int64_t word = 0; word < 4 * blocks; ++word, codes += 8, out += 4) {
    std::uint32_t bits = 0;
    for (std::size_t e = 0; e < 4; ++e) {
      for (std::size_t h = 0; h < 2; ++h) {
        bits |= static_cast<std::uint32_t>(codes[2 * e + h] + 8) << (4 * e + 16 * h);
      }
    }
    std::memcpy(out, &bits, sizeof bits);
  }
}

/// The largest value of a code of float8.
constexpr float kLargestFloat8Code = 448;

/// The code of float8 nearest to a value, the even one of two.
ZI_INLINE std::int8_t e4m3_of(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const float magnitude = std::min(std::abs(value), kLargestFloat8Code);
  const auto rest = std::bit_cast<std::uint32_t>(magnitude);
  // Below 2^-6 codes are multiples of 2^-9, above they are floats with 3 bits of mantissa.
  const auto small = static_cast<std::uint32_t>(rounded(magnitude * 512));
  const std::uint32_t large = ((rest + 0x7ffffu + (rest >> 20 & 1u)) >> 20) - (120u << 3);
  return static_cast<std::int8_t>((magnitude < 1.0f / 64 ? small : large) | (bits >> 24 & 0x80u));
}

ZI_SIMD_CLONES void make_float8_codes(const float* values, std::int64_t count, float inverse,
                                      std::int8_t* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = e4m3_of(values[i] * inverse);
}

/// False where the values cannot be packed.
bool pack_row(const float* values, const PackedRow& row, std::byte* out) {
  const bool float8 = row.format.scale == ScaleType::kFloat8;
  const bool floats = row.format.kind == WeightFormat::Kind::kFloat8;
  const bool int4 = row.format.kind == WeightFormat::Kind::kInt4;
  const Codes codes = codes_of(row.format.kind);
  const std::int64_t blocks = ceil_div(row.cols, block_columns(row.format.kind));
  thread_local std::vector<std::int8_t> made;  // keeps its memory from call to call
  made.assign(static_cast<std::size_t>(blocks * block_columns(row.format.kind)), 0);
  std::memset(out, 0, row.bytes);
  if (!std::isfinite(extreme_of(values, row.cols))) return false;
  if (float8 && !write_float8_scales(values, row, out)) return false;
  for (std::int64_t g = 0; g < row.groups; ++g) {
    const std::int64_t first = g * row.group;
    const std::int64_t count = std::min(row.group, row.cols - first);
    float scale;
    if (float8) {
      scale = row.scale(out, g);
    } else {
      const float extreme = extreme_of(values + first, count);
      const float wanted = extreme == 0 ? 0
                           : floats     ? std::abs(extreme) / kLargestFloat8Code
                                        : best_scale(values + first, count, extreme, codes);
      scale = stored_scale(wanted, row.format.scale,
                           out + row.scales_at + static_cast<std::size_t>(g) * row.scale_bytes);
      if (!std::isfinite(scale)) return false;
    }
    const float inverse = scale == 0 ? 0 : 1 / scale;
    if (floats) {
      make_float8_codes(values + first, count, inverse, made.data() + first);
    } else {
      make_codes(values + first, count, inverse, codes, made.data() + first);
    }
    if (row.format.zeros) {
      out[row.zeros_at + static_cast<std::size_t>(g)] =
          static_cast<std::byte>(static_cast<int>(int4 ? kInt4Middle * kZeroPointSteps : 0));
    }
  }
  if (int4) {
    write_int4(made.data(), blocks, out);
  } else {
    std::memcpy(out, made.data(), made.size());
  }
  return true;
}

}  // namespace

std::int64_t pack_rows(const float* values, std::int64_t rows, std::int64_t cols,
                       const WeightFormat& format, std::byte* out) {
  const PackedRow row(format, cols);
  for (std::int64_t r = 0; r < rows; ++r, values += cols, out += row.bytes) {
    if (!pack_row(values, row, out)) return r;
  }
  return rows;
}

}  // namespace zi
