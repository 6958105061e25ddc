#pragma once

#include <cstdint>

#include "zero_infer/dtype.h"
#include "zero_infer/random.h"

namespace zi {

/// A tensor of seeded random values, uniform in (-half_width, half_width): element i is a pure
/// function of the key and of i, so that any rank, device or thread makes the same one. The draw
/// mix64(key ^ i / 4) makes four elements of 16 bits each: the middles of 2^16 equal steps (no
/// zero, no bias, -x as likely as x), rounded to the type that the tensor is said to be stored in.
struct UniformValues {
  static constexpr std::int64_t kPerDraw = 4;

  std::uint64_t key = 0;
  float half_width = 1;
  DType stored = DType::kBFloat16;

  constexpr float step() const { return half_width * 0x1p-15f; }
  /// Element `j` of a draw, before it is rounded.
  static constexpr float value(std::uint64_t bits, int j, float step) {
    const auto middle = static_cast<int>(bits >> (16 * j) & 0xffffu) - 0x8000;
    return (static_cast<float>(middle) + 0.5f) * step;
  }
};

/// Elements [first, first + count) of the tensor as `to`, on the host.
void fill_uniform(const UniformValues& values, std::int64_t first, std::int64_t count, void* dst,
                  DType to);

}  // namespace zi
