#include "zero_infer/uniform_values.h"

#include <algorithm>
#include <array>
#include <cstddef>

namespace zi {
namespace {

/// Elements made at a time: they stay in the first-level cache.
constexpr std::int64_t kPieceElements = 2048;

}  // namespace

void fill_uniform(const UniformValues& uniform, std::int64_t first, std::int64_t count, void* dst,
                  DType to) {
  constexpr std::int64_t kPerDraw = UniformValues::kPerDraw;
  alignas(64) std::array<float, kPieceElements> values;
  alignas(64) std::array<std::uint16_t, kPieceElements> rounded;
  const float step = uniform.step();
  auto* out = static_cast<std::byte*>(dst);
  while (count > 0) {
    const std::int64_t skip = first % kPerDraw;
    const std::int64_t n = std::min(count, kPieceElements - skip);
    auto draw = static_cast<std::uint64_t>(first / kPerDraw);
    for (std::int64_t i = 0; i < skip + n; i += kPerDraw) {
      const std::uint64_t bits = mix64(uniform.key ^ draw++);
      for (int j = 0; j < kPerDraw; ++j) {
        values[static_cast<std::size_t>(i + j)] = UniformValues::value(bits, j, step);
      }
    }
    const float* const from = values.data() + skip;
    const auto size = static_cast<std::size_t>(n);
    if (uniform.stored == DType::kFloat32 || uniform.stored == to) {
      convert(from, DType::kFloat32, out, to, size);
    } else {  // as a checkpoint of the stored type would give them
      convert(from, DType::kFloat32, rounded.data(), uniform.stored, size);
      convert(rounded.data(), uniform.stored, out, to, size);
    }
    out += size * size_of(to);
    first += n;
    count -= n;
  }
}

}  // namespace zi
