#include "base/utf8.h"

namespace zi {
namespace {

/// The well-formed sequences that begin with `lead` (Unicode, table 3-7): how long they are, and
/// the range of their second byte. Length 0: no sequence begins so.
struct Sequence {
  std::size_t length;
  unsigned char second_min = 0x80;
  unsigned char second_max = 0xBF;
};

Sequence sequence_of(unsigned char lead) {
  if (lead < 0x80) return {1};
  if (lead < 0xC2) return {0};
  if (lead < 0xE0) return {2};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};
  if (lead < 0xF0) return {3};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead < 0xF4) return {4};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

}  // namespace

Utf8Front utf8_front(std::string_view text) {
  using Kind = Utf8Front::Kind;
  const Sequence sequence = sequence_of(static_cast<unsigned char>(text.front()));
  if (sequence.length == 0) return {Kind::kInvalid, 1};
  for (std::size_t i = 1; i < sequence.length; ++i) {
    if (i == text.size()) return {Kind::kIncomplete, i};
    const auto byte = static_cast<unsigned char>(text[i]);
    const unsigned char least = i == 1 ? sequence.second_min : 0x80;
    const unsigned char most = i == 1 ? sequence.second_max : 0xBF;
    if (byte < least || byte > most) return {Kind::kInvalid, i};
  }
  return {Kind::kCharacter, sequence.length};
}

std::optional<std::size_t> first_invalid_utf8(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const Utf8Front front = utf8_front(text.substr(at));
    if (front.kind != Utf8Front::Kind::kCharacter) return at;
    at += front.bytes;
  }
  return std::nullopt;
}

std::uint32_t code_point(std::string_view character) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(character[i]); };
  if (character.size() == 1) return byte(0);
  std::uint32_t code = byte(0) & (0x7fu >> character.size());
  for (std::size_t i = 1; i < character.size(); ++i) code = code << 6 | (byte(i) & 0x3fu);
  return code;
}

}  // namespace zi
