#pragma once

#include <cstdint>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "serve/api_error.h"
#include "zero_infer/error.h"

namespace zi {

/// Members of requests that the server does not know: each is named once in the log, and has no
/// effect. Any thread.
class UnknownFields {
 public:
  /// Names the members of `object` that are not in `known`; `endpoint` is for the message.
  void note(const nlohmann::json& object, const std::vector<std::string>& known,
            std::string_view endpoint);

 private:
  std::mutex mutex_;
  std::set<std::size_t> named_;  // hashes: a name may be long
};

/// The JSON object of a body. Throws ApiError 400 for what is none, is not UTF-8, is nested too
/// deeply or has a member twice.
nlohmann::json parse_body(std::string_view body);

/// The member, or null where it is left out or null.
const nlohmann::json* find_field(const nlohmann::json& object, const char* key);

/// A member that is true or false. Throws ApiError 400.
bool read_flag(const nlohmann::json& object, const char* key, bool absent);

/// A text. Throws ApiError 400 where it is another type, or left out.
std::string read_text(const nlohmann::json& object, const char* key);

/// A list of texts that is not empty. Throws ApiError 400.
std::vector<std::string> read_texts(const nlohmann::json& object, const char* key);

/// Token ids. Throws ApiError 400 naming `key` for what is no list of integers from 0 to 2^31 - 1.
std::vector<std::int32_t> read_ids(const nlohmann::json& list, const char* key);

/// Runs `read`, whose PromptErrors are about members of the body: they become ApiErrors.
template <typename Read>
auto with_members(Read read) {
  try {
    return read();
  } catch (const PromptError& error) {
    throw ApiError::bad_request(error.what());
  }
}

}  // namespace zi
