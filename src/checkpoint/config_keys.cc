#include "checkpoint/config_keys.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/json_file.h"
#include "base/suggestion.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;

constexpr std::size_t kMostIds = 1024;
constexpr std::size_t kMostTexts = 8192;
/// Of an object's name that messages put before its keys: these must still be seen.
constexpr std::size_t kMostOfPrefix = 40;

std::string quoted(const json& value) {
  return in_quotes(value.dump(-1, ' ', false, json::error_handler_t::replace));
}

}  // namespace

ConfigKeys::ConfigKeys(std::string_view text, std::string file)
    : file_(std::move(file)), root_(parse_json_object(text, file_)) {}

ConfigKeys::ConfigKeys(json root, std::string file, std::string prefix)
    : file_(std::move(file)), prefix_(std::move(prefix)), root_(std::move(root)) {}

bool ConfigKeys::is_null(const char* key) const {
  const auto found = root_.find(key);
  return found != root_.end() && found->is_null();
}

std::string ConfigKeys::text(const char* key) const {
  auto value = optional_text(key);
  if (!value) fail_missing({key});
  return *std::move(value);
}

std::optional<std::string> ConfigKeys::optional_text(const char* key) const {
  const json* value = find({key});
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) fail(key, *value, "a string");
  return value->get<std::string>();
}

std::int64_t ConfigKeys::size(Names names, std::int64_t most) const {
  const std::optional<std::int64_t> value = optional_size(names, most);
  if (!value) fail_missing(names);
  return *value;
}

std::optional<std::int64_t> ConfigKeys::optional_size(Names names, std::int64_t most) const {
  std::optional<std::int64_t> found;
  for (const char* name : names) {
    const json* value = find({name});
    if (value == nullptr) continue;
    const bool fits = value->is_number_unsigned() && value->get<std::uint64_t>() >= 1 &&
                      value->get<std::uint64_t>() <= static_cast<std::uint64_t>(most);
    if (!fits) fail(name, *value, fmt::format("a whole number from 1 to {}", most));
    const auto number = value->get<std::int64_t>();
    if (found && *found != number) {
      throw CheckpointError(fmt::format(
          "{}: {} mean the same but have different values, {} and {}; remove the wrong one", file_,
          join(names), *found, number));
    }
    found = number;
  }
  return found;
}

std::optional<std::int64_t> ConfigKeys::optional_count(const char* key, std::int64_t most) const {
  const json* value = find({key});
  if (value == nullptr) return std::nullopt;
  const bool fits = value->is_number_unsigned() &&
                    value->get<std::uint64_t>() <= static_cast<std::uint64_t>(most);
  if (!fits) fail(key, *value, fmt::format("a whole number from 0 to {}", most));
  return value->get<std::int64_t>();
}

double ConfigKeys::positive(const char* key, double absent) const {
  return optional_positive(key).value_or(absent);
}

std::optional<double> ConfigKeys::optional_positive(const char* key) const {
  const json* value = find({key});
  if (value == nullptr) return std::nullopt;
  const double number = value->is_number() ? value->get<double>() : 0.0;
  const auto narrow = static_cast<float>(number);
  if (!(narrow > 0) || !std::isfinite(narrow)) fail(key, *value, "a finite number above 0");
  return number;
}

bool ConfigKeys::flag(const char* key, bool absent) const {
  const json* value = find({key});
  if (value == nullptr) return absent;
  if (!value->is_boolean()) fail(key, *value, "true or false");
  return value->get<bool>();
}

std::vector<std::int32_t> ConfigKeys::ids(const char* key) const {
  const json* value = find({key});
  if (value == nullptr) return {};
  if (value->is_array() && value->size() > kMostIds) {
    throw CheckpointError(fmt::format("{}: {} has {} token ids; {} at most are supported", file_,
                                      in_quotes(name(key)), value->size(), kMostIds));
  }
  std::vector<std::int32_t> ids;
  for (const json& item : value->is_array() ? *value : json::array({*value})) {
    const bool fits = item.is_number_integer() &&
                      (!item.is_number_unsigned() ||
                       item.get<std::uint64_t>() <= std::numeric_limits<std::int32_t>::max());
    if (!fits) fail(key, *value, "a token id");
    const auto id = item.get<std::int64_t>();
    if (id >= 0) ids.push_back(static_cast<std::int32_t>(id));
  }
  return ids;
}

std::int32_t ConfigKeys::id(const char* key) const {
  const std::vector<std::int32_t> list = ids(key);
  return list.empty() ? -1 : list.front();
}

std::optional<ConfigKeys> ConfigKeys::object(const std::string& key) const {
  const auto found = root_.find(key);  // as a string: names in files may hold NULs
  if (found == root_.end() || found->is_null()) return std::nullopt;
  if (!found->is_object()) fail(key, *found, "an object");
  return ConfigKeys(*found, file_, name(key.substr(0, kMostOfPrefix)) + ".");
}

std::vector<std::string> ConfigKeys::texts(const char* key) const {
  const json* value = find({key});
  if (value == nullptr) return {};
  if (!value->is_array() || value->size() > kMostTexts) fail(key, *value, "a list of strings");
  std::vector<std::string> texts;
  for (const json& item : *value) {
    if (!item.is_string()) fail(key, *value, "a list of strings");
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

void ConfigKeys::refuse(const char* key, const char* what, const json& neutral) const {
  const json* value = find({key});
  if (value == nullptr || *value == neutral) return;
  const bool zero_is_neutral = neutral.is_null() || neutral == 0;
  const bool nothing = zero_is_neutral && ((value->is_boolean() && !value->get<bool>()) ||
                                           (value->is_number() && value->get<double>() == 0) ||
                                           (value->is_structured() && value->empty()));
  if (nothing) return;
  throw CheckpointError(fmt::format("{}: {} is {}: {} not supported", file_, in_quotes(name(key)),
                                    quoted(*value), what));
}

void ConfigKeys::fail(const std::string& key, const std::string& expected) const {
  const auto found = root_.find(key);
  fail(key, found == root_.end() ? json() : *found, expected);
}

const json* ConfigKeys::find(Names names) const {
  for (const char* name : names) {
    const auto found = root_.find(name);
    if (found != root_.end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

std::string ConfigKeys::join(Names names) const {
  std::vector<std::string> full;
  for (const char* key : names) full.push_back(in_quotes(name(key)));
  return fmt::to_string(fmt::join(full, " or "));
}

void ConfigKeys::allow_only(Names names) const {
  for (const auto& [key, value] : root_.items()) {
    if (std::ranges::any_of(names, [&key = key](const char* known) { return key == known; }))
      continue;
    throw CheckpointError(fmt::format("{}: {} is {}: this version does not know the key{}", file_,
                                      in_quotes(name(key)), quoted(value),
                                      suggestion(key, {names.begin(), names.end()})));
  }
}

void ConfigKeys::fail_missing(Names names) const {
  for (const char* key : names) {
    if (is_null(key)) {
      throw CheckpointError(fmt::format("{}: {} is null", file_, in_quotes(name(key))));
    }
  }
  throw CheckpointError(fmt::format(
      "{}: {} is missing; this is not the config.json of a supported model, or it is damaged",
      file_, join(names)));
}

void ConfigKeys::fail(const std::string& key, const json& value,
                      const std::string& expected) const {
  throw CheckpointError(fmt::format("{}: {} is {}, expected {}", file_, in_quotes(name(key)),
                                    quoted(value), expected));
}

}  // namespace zi
