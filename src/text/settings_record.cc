#include "text/settings_record.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>

#include "base/printable_text.h"
#include "text/tidy_number.h"

namespace zi {
namespace {

using nlohmann::json;

/// A value of this length is told in full; longer ones (stop texts, biases) by their name alone.
constexpr std::size_t kMostShown = 40;

std::string value_text(const json& record, const std::string& key) {
  const auto value = record.find(key);
  if (value == record.end()) return "unset";
  return printable(value->dump(-1, ' ', false, json::error_handler_t::replace));
}

void add_sampling(json& record, const GenerationSettings& s) {
  const GenerationSettings usual;
  const auto add = [&](const char* key, float value, float unchanged) {
    if (value != unchanged) record[key] = tidy(value);
  };
  record["temperature"] = tidy(s.temperature);
  if (s.temperature > 0) {
    record["seed"] = s.seed;
    // Nothing: the place of the prompt in the input decides the draws together with the seed.
    if (s.draw_number) record["draw_number"] = *s.draw_number;
    if (s.top_k != usual.top_k) record["top_k"] = s.top_k;
    add("top_p", s.top_p, usual.top_p);
    add("min_p", s.min_p, usual.min_p);
  }
  add("repetition_penalty", s.repetition_penalty, usual.repetition_penalty);
  add("presence_penalty", s.presence_penalty, usual.presence_penalty);
  add("frequency_penalty", s.frequency_penalty, usual.frequency_penalty);
  for (const auto& [id, bias] : s.logit_bias) record["logit_bias"][std::to_string(id)] = tidy(bias);
  if (s.min_new_tokens != usual.min_new_tokens) record["min_new_tokens"] = s.min_new_tokens;
  if (!s.stop.empty()) record["stop"] = s.stop;
  if (s.ignore_eos) record["ignore_eos"] = true;
}

}  // namespace

std::string settings_record(const RecordedJob& job, const Prompt& prompt) {
  json record = json::object();
  if (!job.model.empty()) record["model"] = job.model;
  if (!job.special_tokens && prompt.text && !prompt.no_special_tokens) {
    record["special_tokens"] = false;
  }
  if (!job.scored) add_sampling(record, prompt.own.over(job.settings));
  return record.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string describe_difference(std::string_view there, std::string_view here) {
  const json theirs = json::parse(there);
  const json mine = json::parse(here);
  std::set<std::string> keys;
  for (const json* record : {&theirs, &mine}) {
    for (const auto& item : record->items()) keys.insert(item.key());
  }
  keys.erase("model");
  std::string text;
  for (const std::string& key : keys) {
    const std::string of_theirs = value_text(theirs, key);
    const std::string of_mine = value_text(mine, key);
    if (of_theirs == of_mine) continue;
    if (!text.empty()) text += ", ";
    text += of_theirs.size() > kMostShown || of_mine.size() > kMostShown
                ? fmt::format("another {}", in_quotes(key))
                : fmt::format("{} {} there and {} here", printable(key), of_theirs, of_mine);
  }
  return text;
}

bool same_model(std::string_view name, std::string_view other) {
  const auto identity = [](std::string_view of) {
    const std::size_t at = of.rfind('@');
    return at == std::string_view::npos ? of : of.substr(at);
  };
  return identity(name) == identity(other);
}

}  // namespace zi
