#include "zero_infer/bytes.h"

#include <fmt/format.h>

#include <array>
#include <cctype>
#include <charconv>
#include <cmath>

#include "zero_infer/error.h"

namespace zi {
namespace {

/// Bytes of one unit such as `GiB`, `k`, `MB`; 0 when it is none. A bare letter means binary.
double unit_bytes(std::string_view unit) {
  if (unit.empty() || unit == "B" || unit == "b") return 1;
  const std::size_t power = std::string_view("kmgt").find(
      static_cast<char>(std::tolower(static_cast<unsigned char>(unit.front()))));
  if (power == std::string_view::npos) return 0;
  const double exponent = static_cast<double>(power + 1);
  std::string rest;
  for (char c : unit.substr(1)) {
    rest += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  if (rest.empty() || rest == "ib") return std::pow(1024.0, exponent);
  if (rest == "b") return std::pow(1000.0, exponent);
  return 0;
}

std::string with_unit(double bytes, double base, const std::array<const char*, 5>& units) {
  // These limits allow for the rounding to come: 999.7 kB is 1.00 MB, 9.996 kB is 10.0 kB.
  std::size_t i = 0;
  while (std::abs(bytes) >= base - 0.5 && i + 1 < units.size()) {
    bytes /= base;
    ++i;
  }
  if (i == 0) return fmt::format("{:.0f} {}", bytes, units[0]);
  const int decimals = std::abs(bytes) < 9.995 ? 2 : std::abs(bytes) < 99.95 ? 1 : 0;
  return fmt::format("{:.{}f} {}", bytes, decimals, units[i]);
}

}  // namespace

std::size_t parse_size(std::string_view text) {
  const auto fail = [&]() -> ConfigError {
    return ConfigError(fmt::format(
        "`{}` is not a size; write a number and a unit, for example 24GiB, 512MiB, 1.5GB or 0",
        text));
  };
  std::string_view rest = text;
  const auto trim = [&rest] {
    while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
    while (!rest.empty() && rest.back() == ' ') rest.remove_suffix(1);
  };
  trim();
  double number = 0;
  const auto [end, error] =
      std::from_chars(rest.data(), rest.data() + rest.size(), number, std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(number) || number < 0) throw fail();
  rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
  trim();
  const double unit = unit_bytes(rest);
  const double bytes = number * unit;
  if (unit == 0 || bytes > 0x1p62) throw fail();
  return static_cast<std::size_t>(std::llround(bytes));
}

double parse_rate(std::string_view text) {
  constexpr std::string_view kEach = "/s", kBit = "bit";
  std::string_view amount = text;
  while (amount.ends_with(' ')) amount.remove_suffix(1);
  const bool has_time = amount.ends_with(kEach);
  if (has_time) amount.remove_suffix(kEach.size());
  const bool bits = amount.ends_with(kBit);
  if (bits) amount.remove_suffix(kBit.size());
  if (!bits && amount.size() > 1 && amount.ends_with('b')) {
    throw ConfigError(fmt::format("`{}` may mean bits or bytes: write {}B/s or {}bit/s", text,
                                  amount.substr(0, amount.size() - 1),
                                  amount.substr(0, amount.size() - 1)));
  }
  double bytes = 0;
  try {
    if (has_time) bytes = static_cast<double>(parse_size(std::string(amount) + (bits ? "B" : "")));
  } catch (const ConfigError&) {
  }
  if (bytes > 0) return bits ? bytes / 8 : bytes;
  throw ConfigError(fmt::format(
      "`{}` is not a rate above 0; write a number, a unit and /s, for example 25GB/s or 200Gbit/s",
      text));
}

std::string format_bytes(double bytes) {
  return with_unit(bytes, 1000, {"B", "kB", "MB", "GB", "TB"});
}

std::string format_memory(double bytes) {
  return with_unit(bytes, 1024, {"B", "KiB", "MiB", "GiB", "TiB"});
}

}  // namespace zi
