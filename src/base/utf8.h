#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace zi {

/// What is at the front of a text that should be UTF-8.
struct Utf8Front {
  enum class Kind {
    kCharacter,   // a whole character of `bytes` bytes
    kInvalid,     // `bytes` bytes (a maximal subpart, Unicode 3.9) that can never become one
    kIncomplete,  // the whole text is the beginning of a character
  };
  Kind kind = Kind::kCharacter;
  std::size_t bytes = 0;
};

/// Surrogates, overlong forms and values above U+10FFFF are invalid. `text` is not empty.
Utf8Front utf8_front(std::string_view text);

/// Offset of the first byte that is not part of a whole character.
std::optional<std::size_t> first_invalid_utf8(std::string_view text);

/// The value of one whole character.
std::uint32_t code_point(std::string_view character);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace zi
