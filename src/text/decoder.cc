#include "text/decoder.h"

#include <charconv>
#include <optional>
#include <utility>

#include "base/utf8.h"

namespace zi {
namespace {

/// The byte that a token such as `<0x0A>` stands for.
std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with('>')) return std::nullopt;
  std::string_view digits = token.substr(3, 2);
  if (digits.starts_with('+')) digits.remove_prefix(1);  // the reference's parser takes a sign
  unsigned char byte = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), byte, 16);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return static_cast<char>(byte);
}

/// Removes `character` from the front, `most` times at most; how often it was there.
std::size_t strip(std::string& token, const std::string& character, std::size_t most) {
  std::size_t count = 0;
  std::string_view rest = token;
  while (count < most && rest.starts_with(character)) {
    rest.remove_prefix(character.size());
    ++count;
  }
  token.erase(0, token.size() - rest.size());
  return count;
}

std::string with_spaces(const DecoderStep& step, const std::string& token, bool first) {
  std::string out;
  for (std::size_t i = 0; i < token.size();) {
    if (token.compare(i, step.character.size(), step.character) != 0) {
      out += token[i++];
      continue;
    }
    if (!first || !step.prefixed) out += ' ';
    i += step.character.size();
  }
  return out;
}

}  // namespace

std::string text_in_middle(const Decoder& steps, std::string_view token) {
  std::string text(token);
  for (const DecoderStep& step : steps) {
    switch (step.kind) {
      case DecoderStep::Kind::kByteFallback:
        if (const auto byte = fallback_byte(text)) return {*byte};
        break;
      case DecoderStep::Kind::kMetaspace:
        text = with_spaces(step, text, false);
        break;
      case DecoderStep::Kind::kStrip:
        if (!step.whole) strip(text, step.character, step.count);
        break;
    }
  }
  return text;
}

void DecoderStream::feed(std::size_t step, std::string token, std::string& out) {
  if (step == steps_->size()) {
    out += token;
    return;
  }
  const DecoderStep& it = (*steps_)[step];
  State& state = states_[step];
  switch (it.kind) {
    case DecoderStep::Kind::kByteFallback:
      if (const auto byte = fallback_byte(token)) {
        state.bytes += *byte;
        return;
      }
      end_run(step, out);
      break;
    case DecoderStep::Kind::kMetaspace:
      token = with_spaces(it, token, std::exchange(state.first, false));
      break;
    case DecoderStep::Kind::kStrip:
      if (!it.whole) {
        strip(token, it.character, it.count);
      } else if (state.stripping && !token.empty()) {
        state.stripped += strip(token, it.character, it.count - state.stripped);
        state.stripping = token.empty();
      }
      break;
  }
  feed(step + 1, std::move(token), out);
}

void DecoderStream::end_run(std::size_t step, std::string& out) {
  const std::string bytes = std::exchange(states_[step].bytes, {});
  if (bytes.empty()) return;
  // All or nothing, as the reference does it: one byte that is wrong, and none of the run counts.
  if (!first_invalid_utf8(bytes)) {
    feed(step + 1, bytes, out);
  } else {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      feed(step + 1, std::string(kReplacementCharacter), out);
    }
  }
}

void DecoderStream::finish(std::string& out) {
  for (std::size_t step = 0; step < steps_->size(); ++step) end_run(step, out);
  states_.assign(steps_->size(), State());
}

}  // namespace zi
