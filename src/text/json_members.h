#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "base/printable_text.h"
#include "base/utf8.h"
#include "zero_infer/error.h"

namespace zi {

/// Members of the tokenizer's JSON files, read with CheckpointErrors that name member and value. A
/// message begins with the file where the caller has put it there.

/// Ids index a table; a file that claims more is damaged.
inline constexpr std::int64_t kMostTokenIds = 1 << 24;

template <typename... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw CheckpointError(fmt::format(format, std::forward<Args>(args)...));
}

/// A short form of a value for messages.
inline std::string shown(const nlohmann::json& value) {
  if (value.is_structured()) return value.is_array() ? "an array" : "an object";
  constexpr std::size_t kMost = 80;
  std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() <= kMost) return printable(text);
  text.resize(kMost);
  while (first_invalid_utf8(text)) text.pop_back();
  return printable(text) + "..";
}

/// The member, or null where there is none.
inline const nlohmann::json& member(const nlohmann::json& object, const char* key) {
  static const nlohmann::json null;
  const auto it = object.find(key);
  return it == object.end() ? null : *it;
}

inline bool flag(const nlohmann::json& object, const char* key, bool absent) {
  const nlohmann::json& value = member(object, key);
  if (value.is_null()) return absent;
  if (!value.is_boolean()) refuse("`{}` is {}, not true or false", key, shown(value));
  return value.get<bool>();
}

inline std::int32_t token_id(const nlohmann::json& value, std::string_view token) {
  if (!value.is_number_integer() || value < 0 || value >= kMostTokenIds) {
    refuse("the token {} has the id {}; ids are integers from 0 to {}", in_quotes(token),
           shown(value), kMostTokenIds - 1);
  }
  return value.get<std::int32_t>();
}

/// Calls `work` and puts the file's name in front of its CheckpointErrors.
template <typename Work>
auto in_file(const std::string& file, Work work) {
  try {
    return work();
  } catch (const CheckpointError& error) {
    throw CheckpointError(file + ": " + error.what());
  }
}

}  // namespace zi
