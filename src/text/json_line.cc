#include "text/json_line.h"

#include <fmt/format.h>

#include <unordered_set>
#include <vector>

#include "base/json_file.h"
#include "base/printable_text.h"
#include "base/utf8.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// The library's message without its own name and the line number, which is always 1 here.
std::string reason(const nlohmann::json::exception& error) {
  std::string_view text = error.what();
  for (const std::string_view prefix : {"] ", "parse error at line 1, "}) {
    if (const auto at = text.find(prefix); at != std::string_view::npos && at < 60) {
      text.remove_prefix(at + prefix.size());
    }
  }
  std::string out(text.substr(0, 200));
  while (first_invalid_utf8(out)) out.pop_back();
  return printable(out) + (out.size() < text.size() ? ".." : "");
}

}  // namespace

nlohmann::json parse_json_line(std::string_view line) {
  if (const auto offset = first_invalid_utf8(line)) {
    throw PromptError(fmt::format("invalid UTF-8 at byte {} of the line (0x{:02x})", *offset,
                                  static_cast<unsigned char>(line[*offset])));
  }
  using nlohmann::json;
  std::vector<std::unordered_set<std::string>> keys;  // of each object that is open
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > static_cast<int>(kMostJsonNesting)) {
      throw PromptError(fmt::format("JSON nested deeper than {}", kMostJsonNesting));
    }
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key &&
        !keys.back().insert(parsed.get_ref<const std::string&>()).second) {
      throw PromptError(
          fmt::format("{} is there twice", in_quotes(parsed.get_ref<const std::string&>())));
    }
    return true;
  };
  json value;
  try {
    value = json::parse(line, watch);
  } catch (const json::exception& error) {
    throw PromptError("not JSON: " + reason(error));
  }
  if (!value.is_object()) throw PromptError("not a JSON object");
  return value;
}

std::string id_of(const nlohmann::json& object) {
  const auto it = object.find("id");
  if (it == object.end()) return {};
  if (!it->is_string() && !it->is_number_integer()) {
    throw PromptError("`id` is neither a string nor a 64-bit integer");
  }
  return it->dump();
}

}  // namespace zi
