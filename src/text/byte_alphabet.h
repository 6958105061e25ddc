#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace zi {

/// The byte-level alphabet: each byte has a printable character of its own (below U+0180). Tokens
/// of byte-level BPE are written in it.
class ByteAlphabet {
 public:
  ByteAlphabet();

  const std::string& character(std::size_t byte) const { return characters_[byte]; }
  /// The bytes of a token (valid UTF-8); nothing when one of its characters is not of the alphabet.
  std::optional<std::string> bytes(std::string_view token) const;
  /// As the reference decodes: a token with any other character means its own UTF-8 bytes.
  std::string decoded(const std::string& token) const { return bytes(token).value_or(token); }

 private:
  std::array<int, 0x180> bytes_;
  std::array<std::string, 256> characters_;
};

}  // namespace zi
