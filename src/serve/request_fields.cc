#include "serve/request_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>

#include "base/printable_text.h"
#include "serve/api_error.h"
#include "text/json_line.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// Names come from anywhere: the log must not grow without end.
constexpr std::size_t kMostNamedFields = 200;

}  // namespace

void UnknownFields::note(const nlohmann::json& object, const std::vector<std::string>& known,
                         std::string_view endpoint) {
  for (const auto& item : object.items()) {
    if (std::ranges::find(known, item.key()) != known.end()) continue;
    {
      const std::scoped_lock lock(mutex_);
      if (named_.size() >= kMostNamedFields) continue;
      if (!named_.insert(std::hash<std::string>()(item.key())).second) continue;
    }
    log_warning(fmt::format("{}: the server does not know {}, which has no effect", endpoint,
                            in_quotes(item.key())));
  }
}

nlohmann::json parse_body(std::string_view body) {
  try {
    return parse_json_line(body);
  } catch (const PromptError& error) {
    throw ApiError(400, fmt::format("the body cannot be used: {}", error.what()), {});
  }
}

const nlohmann::json* find_field(const nlohmann::json& object, const char* key) {
  const auto at = object.find(key);
  return at == object.end() || at->is_null() ? nullptr : &*at;
}

bool read_flag(const nlohmann::json& object, const char* key, bool absent) {
  const nlohmann::json* const value = find_field(object, key);
  if (value == nullptr) return absent;
  if (!value->is_boolean()) {
    throw ApiError::bad_field(fmt::format("`{}` is not true or false", key), key);
  }
  return value->get<bool>();
}

std::string read_text(const nlohmann::json& object, const char* key) {
  const nlohmann::json* const value = find_field(object, key);
  if (value == nullptr) throw ApiError::bad_field(fmt::format("no `{}`", key), key);
  if (!value->is_string()) throw ApiError::bad_field(fmt::format("`{}` is not a text", key), key);
  return value->get<std::string>();
}

std::vector<std::string> read_texts(const nlohmann::json& object, const char* key) {
  const nlohmann::json* const value = find_field(object, key);
  if (value == nullptr) throw ApiError::bad_field(fmt::format("no `{}`", key), key);
  if (!value->is_array() || value->empty() ||
      !std::ranges::all_of(*value, [](const auto& item) { return item.is_string(); })) {
    throw ApiError::bad_field(fmt::format("`{}` is not a list of texts", key), key);
  }
  return value->get<std::vector<std::string>>();
}

std::vector<std::int32_t> read_ids(const nlohmann::json& list, const char* key) {
  constexpr std::int32_t kMostId = std::numeric_limits<std::int32_t>::max();
  std::vector<std::int32_t> ids;
  const auto wrong = [&] {
    return ApiError::bad_field(
        fmt::format("`{}` is no list of token ids: number {} is not an integer from 0 to {}", key,
                    ids.size(), kMostId),
        key);
  };
  if (!list.is_array()) throw wrong();
  ids.reserve(list.size());
  for (const nlohmann::json& id : list) {
    if (!id.is_number_integer() || id < 0 || id > kMostId) throw wrong();
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

}  // namespace zi
