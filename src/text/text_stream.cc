#include <string>
#include <string_view>
#include <utility>

#include "base/utf8.h"
#include "text/tokenizer.h"

namespace zi {

std::string TextStream::push(std::int32_t id) {
  pending_ += tokenizer_->token_bytes(id);
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
  // At most the beginning of one character is ever held back.
  return std::exchange(pending_, {}).empty() ? std::string() : std::string(kReplacementCharacter);
}

}  // namespace zi
