#pragma once

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <string>

namespace zi {

/// The double whose shortest form is that of the float: `-0.1` and not `-0.10000000149011612`.
/// What is not finite becomes null when it is written as JSON.
inline double tidy(float value) {
  if (!std::isfinite(value)) return static_cast<double>(value);
  const std::string text = fmt::format("{}", value);
  double out = 0;
  std::from_chars(text.data(), text.data() + text.size(), out);
  return out;
}

}  // namespace zi
