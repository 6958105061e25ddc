#include "zero_infer/weight_format.h"

#include <fmt/format.h>

#include <charconv>
#include <string_view>
#include <system_error>

#include "zero_infer/bytes.h"

namespace zi {
namespace {

/// Blocks of codes, scales and packed rows with scales of a byte begin at multiples of this.
constexpr std::size_t kRowAlignment = 16;
/// Other packed rows: GPUs read memory by 32 bytes. Rows of 4,096 codes and one scale took a fifth
/// longer at multiples of 16. (Checkpoints and shard files have versions of both.)
constexpr std::size_t kSectorBytes = 32;

std::string_view codes_of(WeightFormat::Kind kind) {
  switch (kind) {
    case WeightFormat::Kind::kInt8:
      return "int8";
    case WeightFormat::Kind::kFloat8:
      return "float8";
    default:
      return "int4";
  }
}

std::string_view name_of(ScaleType type) {
  switch (type) {
    case ScaleType::kFloat32:
      return "f32";
    case ScaleType::kFloat16:
      return "f16";
    case ScaleType::kBFloat16:
      return "bf16";
    case ScaleType::kFloat8:
      break;
  }
  return "f8";
}

}  // namespace

std::size_t size_of(ScaleType type) {
  return type == ScaleType::kFloat32 ? 4 : type == ScaleType::kFloat8 ? 1 : 2;
}

std::size_t WeightFormat::scales_at(std::int64_t cols) const {
  const auto codes = static_cast<std::size_t>(kind == Kind::kInt4 ? (cols + 1) / 2 : cols);
  return align_up(codes, kRowAlignment);
}

std::size_t WeightFormat::zeros_at(std::int64_t cols) const {
  return scales_at(cols) + static_cast<std::size_t>(groups(cols)) * size_of(scale);
}

std::size_t WeightFormat::row_bytes(std::int64_t cols) const {
  if (!packed()) return static_cast<std::size_t>(cols) * size_of(dtype);
  const auto zero_points = static_cast<std::size_t>(zeros ? groups(cols) : 0);
  return align_up(zeros_at(cols) + zero_points,
                  scale == ScaleType::kFloat8 ? kRowAlignment : kSectorBytes);
}

std::string describe(const WeightFormat& format) {
  if (!format.packed()) return std::string(name_of(format.dtype));
  std::string text(codes_of(format.kind));
  if (format.group != 0) text += fmt::format(" in groups of {}", format.group);
  if (format.zeros) text += ", with zero points";
  return text;
}

std::string name_of(const WeightFormat& format) {
  if (!format.packed()) return std::string(name_of(format.dtype));
  std::string text(codes_of(format.kind));
  if (format.group != 0) text += fmt::format("g{}", format.group);
  text += name_of(format.scale);
  if (format.zeros) text += 'z';
  return text;
}

std::optional<WeightFormat> packed_format_named(std::string_view name) {
  WeightFormat format;
  std::string_view rest = name;
  const auto take = [&rest](std::string_view part) {
    if (!rest.starts_with(part)) return false;
    rest.remove_prefix(part.size());
    return true;
  };
  if (take("int8")) {
    format.kind = WeightFormat::Kind::kInt8;
  } else if (take("int4")) {
    format.kind = WeightFormat::Kind::kInt4;
  } else if (take("float8")) {
    format.kind = WeightFormat::Kind::kFloat8;
  } else {
    return std::nullopt;
  }
  if (take("g")) {
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), format.group);
    if (error != std::errc() || format.group <= 0 || format.group % 16 != 0) return std::nullopt;
    rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
  }
  for (const ScaleType scale :
       {ScaleType::kFloat32, ScaleType::kFloat16, ScaleType::kBFloat16, ScaleType::kFloat8}) {
    format.scale = scale;
    if (take(name_of(scale))) break;
  }
  const bool floats = format.kind == WeightFormat::Kind::kFloat8;
  if (floats && format.scale == ScaleType::kFloat8) return std::nullopt;
  format.zeros = !floats && take("z");
  return name_of(format) == name ? std::optional(format) : std::nullopt;
}

}  // namespace zi
