#include <string>
#include <string_view>

#include "base/utf8.h"
#include "text/tokenizer.h"

namespace zi {

std::string TextStream::push(std::int32_t id) {
  const bool in_text = tokenizer_->in_text(id);
  const std::string_view token =
      in_text ? tokenizer_->token_bytes(id)
              : (special_tokens_ ? tokenizer_->token_text(id) : std::string_view());
  if (!in_text && token.empty()) return {};
  decoder_.push(token, pending_);
  return take_whole_characters();
}

std::string TextStream::take_whole_characters() {
  std::string out;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Front front = utf8_front(rest);
    if (front.kind == Utf8Front::Kind::kIncomplete) break;
    out += front.kind == Utf8Front::Kind::kCharacter ? rest.substr(0, front.bytes)
                                                     : kReplacementCharacter;
    rest.remove_prefix(front.bytes);
  }
  pending_ = std::string(rest);
  return out;
}

std::string TextStream::finish() {
  decoder_.finish(pending_);
  std::string out = take_whole_characters();
  // At most the beginning of one character is left.
  if (!pending_.empty()) out += kReplacementCharacter;
  pending_.clear();
  return out;
}

}  // namespace zi
