// Any bytes as a line of a prompt file: refused with a reason, or a prompt that keeps its promises
// and survives the trip between ranks. The same bytes as a message of each kind must be refused or
// read, never crash.

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "text/chat_prompt.h"
#include "text/prompt_line.h"
#include "text/result.h"
#include "zero_infer/error.h"

namespace {

void check(bool good) {
  if (!good) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    const zi::Prompt prompt = zi::parse_prompt_line(bytes);
    check(prompt.text.has_value() != prompt.ids.has_value());
    check(prompt.text ? !prompt.text->empty() : !prompt.ids->empty());
    check(!prompt.own.max_new_tokens || *prompt.own.max_new_tokens >= 1);
    const zi::Prompt back = zi::Prompt::deserialize(prompt.serialize());
    check(back.id == prompt.id && back.text == prompt.text && back.ids == prompt.ids);
    zi::Result result;
    result.id = prompt.id;
    result.text = prompt.text.value_or("");
    check(result.to_json().find('\n') == std::string::npos);
  } catch (const zi::PromptError&) {
  }
  try {
    if (bytes.starts_with("{")) zi::parse_chat_line(bytes);
  } catch (const zi::PromptError&) {
  }
  try {
    zi::Prompt::deserialize(bytes);
  } catch (const zi::Error&) {
  }
  try {
    zi::Result::deserialize(bytes);
  } catch (const zi::Error&) {
  }
  try {
    zi::Delta::deserialize(bytes);
  } catch (const zi::Error&) {
  }
  return 0;
}
