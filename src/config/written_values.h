#pragma once

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <string_view>
#include <system_error>

#include "zero_infer/error.h"

namespace zi {

/// Keeps products of two counts inside 64 bits.
inline constexpr std::int64_t kMostCount = 1'000'000'000;

/// The whole text as a number; ConfigError says that it is not `kind`, or out of range.
template <typename T>
T parse_number(std::string_view text, std::string_view kind) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::result_out_of_range) {
    throw ConfigError(fmt::format("`{}` is out of range", text));
  }
  if (error != std::errc() || end != text.data() + text.size()) {
    throw ConfigError(fmt::format("`{}` is not {}", text, kind));
  }
  return value;
}

inline bool parse_switch(std::string_view text) {
  if (text == "true" || text == "True" || text == "TRUE") return true;
  if (text == "false" || text == "False" || text == "FALSE") return false;
  throw ConfigError(fmt::format("`{}` is neither true nor false", text));
}

inline void check_count(std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return;
  throw ConfigError(fmt::format("must be from {} to {}, not {}", least, most, value));
}

}  // namespace zi
