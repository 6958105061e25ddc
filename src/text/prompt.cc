#include "text/prompt.h"

#include <fmt/format.h>

#include <limits>

#include "text/json_line.h"
#include "text/wire.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;
constexpr char kWireKind = 'P';

std::vector<std::int32_t> parse_ids(const json& values) {
  if (!values.is_array()) throw PromptError("`prompt_ids` is not an array of integers");
  std::vector<std::int32_t> ids;
  ids.reserve(values.size());
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  for (const json& value : values) {
    if (!value.is_number_integer() || value < 0 || value > kMost) {
      throw PromptError(
          fmt::format("`prompt_ids`[{}] is not an integer from 0 to {}", ids.size(), kMost));
    }
    ids.push_back(value.get<std::int32_t>());
  }
  return ids;
}

std::int64_t parse_max_new_tokens(const json& value) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  if (!value.is_number_integer() || value < 1 || value > kMost) {
    throw PromptError("`max_new_tokens` is not an integer of at least 1");
  }
  return value.get<std::int64_t>();
}

}  // namespace

Prompt parse_prompt_line(std::string_view line) {
  const json object = parse_json_line(line);
  Prompt prompt;
  prompt.id = id_of(object);
  const auto text = object.find("prompt");
  const auto ids = object.find("prompt_ids");
  if (text != object.end() && ids != object.end()) {
    throw PromptError("both `prompt` and `prompt_ids`; give one of them");
  }
  if (text != object.end()) {
    if (!text->is_string()) throw PromptError("`prompt` is not a string");
    prompt.text = text->get<std::string>();
  } else if (ids != object.end()) {
    prompt.ids = parse_ids(*ids);
  } else {
    throw PromptError("neither `prompt` nor `prompt_ids`");
  }
  if (prompt.text ? prompt.text->empty() : prompt.ids->empty()) throw PromptError("empty prompt");
  if (const auto most = object.find("max_new_tokens"); most != object.end()) {
    prompt.max_new_tokens = parse_max_new_tokens(*most);
  }
  return prompt;
}

std::string Prompt::serialize() const {
  WireWriter out(kWireKind);
  out.put(index);
  out.put(id);
  out.put(text);
  out.put(ids);
  out.put(max_new_tokens);
  out.put(where);
  return out.take();
}

Prompt Prompt::deserialize(std::string_view bytes) {
  WireReader in(kWireKind, bytes);
  const auto text = [&] { return in.text(); };
  Prompt prompt;
  prompt.index = in.get<std::uint64_t>();
  prompt.id = in.text();
  prompt.text = in.optional(text);
  prompt.ids = in.optional([&] { return in.vector([&] { return in.get<std::int32_t>(); }); });
  prompt.max_new_tokens = in.optional([&] { return in.get<std::int64_t>(); });
  prompt.where = in.text();
  in.finish();
  return prompt;
}

}  // namespace zi
