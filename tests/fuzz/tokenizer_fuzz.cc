// Any bytes as tokenizer.json: refused with a reason, or a tokenizer whose ids lie below its size
// and whose pieces make the same text, streamed or not.

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "text/tokenizer.h"
#include "zero_infer/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  try {
    const zi::Tokenizer tokenizer = zi::Tokenizer::parse(json, "fuzz");
    for (const char* text : {"aa bb", " the\n1", "\xE2\x82\xAC<s>"}) {
      const auto ids = tokenizer.encode(text);
      for (const std::int32_t id : ids) {
        if (id < 0 || id >= tokenizer.size()) std::abort();
      }
      zi::TextStream stream(tokenizer);
      std::string streamed;
      for (const std::int32_t id : ids) streamed += stream.push(id);
      streamed += stream.finish();
      // Each invalid byte may become three; nothing else changes the length.
      const std::size_t decoded = tokenizer.decode(ids).size();
      if (streamed.size() < decoded / 3 || streamed.size() > decoded * 3) std::abort();
    }
  } catch (const zi::CheckpointError&) {
  } catch (const zi::PromptError&) {
  }
  return 0;
}
