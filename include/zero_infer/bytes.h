#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace zi {

/// Alignment of a matrix inside a shard.
inline constexpr std::size_t kMatrixAlignment = 256;
/// Alignment of shards, of O_DIRECT reads and of pinned memory: one page.
inline constexpr std::size_t kPageBytes = 4096;

/// The smallest multiple of `alignment` that is >= `value`.
constexpr std::size_t align_up(std::size_t value, std::size_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Reads `24GiB`, `512 MiB`, `1.5GB`, `4096`, `0`: binary (KiB..TiB, K..T) and decimal (kB..TB)
/// units. Throws ConfigError for anything else, negative or above 2^62.
std::size_t parse_size(std::string_view text);

/// Reads a rate, such as `25GB/s`, `1.5 GiB/s` or `200Gbit/s`, as bytes a second. Throws
/// ConfigError for anything else.
double parse_rate(std::string_view text);

/// `4.9 GB`, `512 B`: decimal units, three significant digits.
std::string format_bytes(double bytes);

/// `24.0 GiB`: binary units, for memory.
std::string format_memory(double bytes);

}  // namespace zi
