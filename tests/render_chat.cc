// Renders chat templates for chat_reference_test.py: reads one JSON object a line from standard
// input, {"template": path, "messages", "tools", "arguments"}, and answers each with a line
// {"text"}, or {"error", "raised"} where the template or the messages are refused.

#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/json_file.h"
#include "chat/jinja/interpreter.h"
#include "chat/jinja/parser.h"
#include "chat/values/budget.h"
#include "chat/values/json_text.h"
#include "chat/values/template_error.h"
#include "zero_infer/error.h"

namespace {

constexpr std::size_t kMostBytes = std::size_t{1} << 20;
constexpr std::time_t kNow = 1'753'488'000;  // 26 July 2025, 00:00 UTC

nlohmann::json answer(const std::string& line) {
  using zi::chat::Value;
  try {
    const Value request = zi::chat::parse_json(line, 64);
    zi::chat::Dict variables;
    for (const auto& [key, value] : request.dict()->find("variables")->dict()->items()) {
      variables.set(key, value);
    }
    const Value* const source = request.dict()->find("source");
    const std::string text =
        source != nullptr
            ? source->text()->text
            : zi::read_text_file(request.dict()->find("template")->text()->text, kMostBytes);
    return {{"text", zi::chat::render(zi::chat::parse_template(text), variables, kNow)}};
  } catch (const zi::chat::RaisedByTemplate& raised) {
    return {{"raised", raised.what()}};
  } catch (const zi::chat::TemplateError& error) {
    return {{"error", std::to_string(error.line()) + ": " + error.what()}};
  } catch (const zi::Error& error) {
    return {{"error", error.what()}};
  }
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << answer(line).dump() << std::endl;
  }
}
