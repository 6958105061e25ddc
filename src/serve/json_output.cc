#include "serve/json_output.h"

#include <array>
#include <charconv>
#include <cmath>

namespace zi {

double shortest(float value) {
  if (!std::isfinite(value)) return static_cast<double>(value);
  std::array<char, 32> text{};
  const auto written = std::to_chars(text.data(), text.data() + text.size(), value);
  double out = 0;
  std::from_chars(text.data(), written.ptr, out);
  return out;
}

}  // namespace zi
