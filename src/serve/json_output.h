#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace zi {

/// Answers keep the order in which they are written, as people read them.
using Json = nlohmann::ordered_json;

/// One line. Bytes that are not UTF-8 become U+FFFD, numbers that are not finite null.
inline std::string dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// The double whose shortest form is that of the float: `-0.1` and not `-0.10000000149011612`.
double shortest(float value);

}  // namespace zi
