#include "text/byte_alphabet.h"

#include <cstdint>

#include "base/utf8.h"

namespace zi {

ByteAlphabet::ByteAlphabet() {
  bytes_.fill(-1);
  std::uint32_t next = 256;
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    const std::uint32_t character = itself ? byte : next++;
    bytes_[character] = static_cast<int>(byte);
    std::string& text = characters_[byte];
    if (character < 0x80) {
      text.push_back(static_cast<char>(character));
    } else {
      text.push_back(static_cast<char>(0xC0 | character >> 6));
      text.push_back(static_cast<char>(0x80 | (character & 0x3F)));
    }
  }
}

std::optional<std::string> ByteAlphabet::bytes(std::string_view token) const {
  std::string out;
  while (!token.empty()) {
    const std::string_view character = token.substr(0, utf8_front(token).bytes);
    const std::uint32_t code = code_point(character);
    if (code >= bytes_.size() || bytes_[code] < 0) return std::nullopt;
    out += static_cast<char>(bytes_[code]);
    token.remove_prefix(character.size());
  }
  return out;
}

}  // namespace zi
