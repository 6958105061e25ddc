#include <string>
#include <string_view>

#include "base/utf8.h"
#include "text/tokenizer.h"

namespace zi {

std::string TextStream::push(std::int32_t id) {
  if (!tokenizer_->in_text(id)) return {};
  decoder_.push(tokenizer_->token_bytes(id), pending_);
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
