#include "serve/api_error.h"

#include <utility>

#include "serve/json_output.h"

namespace zi {

ApiError ApiError::bad_field(const std::string& message, std::string param) {
  return {400, message, {.param = std::move(param)}};
}

ApiError ApiError::bad_request(const std::string& message) {
  std::string param;
  if (message.starts_with('`')) param = message.substr(1, message.find('`', 1) - 1);
  return bad_field(message, std::move(param));
}

ApiError ApiError::unavailable(const std::string& message) {
  ApiError error(503, message, {.type = "server_error", .code = "unavailable"});
  return error.retry_after(1);
}

ApiError ApiError::stopped() {
  return unavailable("the server was stopped before the answer was complete");
}

ApiError ApiError::failed(const std::string& message) {
  return {500, message, {.type = "server_error", .code = "internal_error"}};
}

std::string ApiError::to_json() const {
  const auto or_null = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
  Json error;
  error["message"] = what();
  error["type"] = fields_.type;
  error["param"] = or_null(fields_.param);
  error["code"] = or_null(fields_.code);
  return dump(Json{{"error", std::move(error)}});
}

HttpResponse ApiError::response() const {
  HttpResponse response;
  response.status = status_;
  response.body = to_json();
  if (retry_after_ > 0) response.headers.emplace_back("Retry-After", std::to_string(retry_after_));
  return response;
}

}  // namespace zi
