#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "zero_infer/error.h"

namespace zi {

/// Appends values to bytes that another rank of the same job reads: same program, same byte order.
class WireWriter {
 public:
  /// `kind` tells messages of different types apart.
  explicit WireWriter(char kind) : bytes_(1, kind) {}

  template <typename T>
  requires std::is_arithmetic_v<T>
  void put(T value) { bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T)); }
  void put(std::string_view text) {
    put(static_cast<std::uint64_t>(text.size()));
    bytes_ += text;
  }
  void put(const std::string& text) { put(std::string_view(text)); }
  template <typename T>
  void put(const std::vector<T>& values) {
    put(static_cast<std::uint64_t>(values.size()));
    for (const T& value : values) put(value);
  }
  template <typename T>
  void put(const std::optional<T>& value) {
    put(value.has_value());
    if (value) put(*value);
  }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

/// Reads what WireWriter wrote, in the same order. Throws Error for bytes that are not a whole
/// message.
class WireReader {
 public:
  WireReader(char kind, std::string_view bytes) : rest_(bytes), bytes_(bytes.size()) {
    if (get<char>() != kind) fail();
  }

  template <typename T>
  requires std::is_arithmetic_v<T> T get() {
    if constexpr (std::is_same_v<T, bool>) {
      const auto byte = get<unsigned char>();
      if (byte > 1) fail();  // as a bool it would be undefined
      return byte == 1;
    } else {
      T value;
      std::memcpy(&value, cut(sizeof(T)).data(), sizeof(T));
      return value;
    }
  }
  std::string text() { return std::string(cut(get<std::uint64_t>())); }
  /// `read` gives one value.
  template <typename Read>
  auto vector(Read read) {
    std::vector<decltype(read())> values;
    const auto count = get<std::uint64_t>();
    if (count > rest_.size()) fail();  // each value has at least one byte
    values.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) values.push_back(read());
    return values;
  }
  template <typename Read>
  auto optional(Read read) -> std::optional<decltype(read())> {
    if (!get<bool>()) return std::nullopt;
    return read();
  }
  void finish() const {
    if (!rest_.empty()) fail();
  }

 private:
  std::string_view cut(std::uint64_t count) {
    if (count > rest_.size()) fail();
    const std::string_view front = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return front;
  }
  [[noreturn]] void fail() const {
    throw Error("a message of " + std::to_string(bytes_) +
                " bytes between ranks is damaged; do all ranks run the same zero-infer?");
  }
  std::string_view rest_;
  std::size_t bytes_;
};

}  // namespace zi
