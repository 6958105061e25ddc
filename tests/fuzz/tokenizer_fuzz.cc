// Any bytes as tokenizer.json, and behind each NUL as the next file beside it
// (tokenizer_config.json, special_tokens_map.json, added_tokens.json, and merges.txt, with which
// the first is vocab.json): refused with a reason, or a tokenizer whose ids lie below its size,
// whose tokens hold no more bytes than it says, and whose texts are UTF-8, streamed or not.

#include <array>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "base/utf8.h"
#include "text/tokenizer.h"
#include "zero_infer/error.h"

namespace {

zi::TokenizerFiles files_of(std::string_view bytes) {
  std::array<std::optional<zi::TextFile>, 5> files;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::size_t end = i + 1 < files.size() ? bytes.find('\0') : std::string_view::npos;
    const std::string_view text = bytes.substr(0, end);
    if (i == 0 || !text.empty()) files[i] = {"fuzz " + std::to_string(i), std::string(text)};
    if (end == std::string_view::npos) break;
    bytes.remove_prefix(end + 1);
  }
  return {*files[0], files[1], files[2], files[3], files[4]};
}

void check(const zi::Tokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.encode(text, true);
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= tokenizer.size()) std::abort();
  }
  const auto longest = tokenizer.longest_token_bytes();
  if (longest && ids.size() * *longest < text.size()) std::abort();
  zi::TextStream stream(tokenizer);
  std::string streamed;
  for (const std::int32_t id : ids) {
    const std::string part = stream.push(id);
    if (zi::first_invalid_utf8(part)) std::abort();
    streamed += part;
  }
  streamed += stream.finish();
  if (streamed != tokenizer.decode(ids)) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const zi::Tokenizer tokenizer =
        zi::Tokenizer::parse(files_of({reinterpret_cast<const char*>(data), size}));
    for (const char* text : {"aa bb", " the\n1", "\xE2\x82\xAC<s>", "<x><y>a b<z>",
                             "e\u0301 \uFB01 \u2581a  <s> 12"}) {
      check(tokenizer, text);
    }
  } catch (const zi::CheckpointError& error) {
    if (error.what()[0] == '\0') std::abort();
  } catch (const zi::PromptError&) {
  }
  return 0;
}
