// Any bytes as a chat template, and behind the first NUL as a line of a prompt file: refused with a
// reason, or a text that is valid UTF-8. What does not end, or takes all memory, is found by
// libFuzzer's own limits.

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/utf8.h"
#include "chat/jinja/interpreter.h"
#include "chat/jinja/parser.h"
#include "chat/values/json_text.h"
#include "chat/values/template_error.h"

namespace {

constexpr std::string_view kVariables = R"({"messages": [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "é <a> \n"}]},
    {"role": "assistant", "content": null, "tool_calls": [
        {"id": "1", "function": {"name": "f", "arguments": {"x": [1, 2.5, true, null]}}}]}],
    "tools": null, "add_generation_prompt": true, "bos_token": "<s>"})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::size_t end = bytes.find('\0');
  const std::string_view source = bytes.substr(0, end);
  if (zi::first_invalid_utf8(source)) return 0;
  try {
    zi::chat::Value variables = zi::chat::parse_json(kVariables, 64);
    if (end != std::string_view::npos && !zi::first_invalid_utf8(bytes.substr(end + 1))) {
      variables = zi::chat::parse_json(bytes.substr(end + 1), 64);
      if (variables.dict() == nullptr) return 0;
    }
    const zi::chat::Body body = zi::chat::parse_template(source);
    const std::string text = zi::chat::render(body, *variables.dict(), 0);
    if (zi::first_invalid_utf8(text)) std::abort();
  } catch (const zi::chat::RaisedByTemplate&) {
  } catch (const zi::chat::TemplateError& error) {
    if (error.what()[0] == '\0' || error.line() < 0) std::abort();
  }
  return 0;
}
