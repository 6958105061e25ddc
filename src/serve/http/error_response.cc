#include "serve/http/error_response.h"

#include <nlohmann/json.hpp>
#include <string>

namespace zi {
namespace {

constexpr const char* kRetryAfterSeconds = "2";

std::string_view code_of(int status) {
  switch (status) {
    case 400:
      return "bad_request";
    case 408:
      return "request_timeout";
    case 413:
      return "body_too_large";
    case 415:
      return "unsupported_encoding";
    case 417:
      return "expectation_failed";
    case 431:
      return "head_too_large";
    case 501:
      return "not_implemented";
    case 503:
      return "overloaded";
    case 505:
      return "http_version_not_supported";
    default:
      return status < 500 ? "invalid_request" : "internal_error";
  }
}

}  // namespace

HttpResponse error_response(int status, std::string_view message) {
  const nlohmann::json error = {{"message", message},
                                {"type", status < 500 ? "invalid_request_error" : "server_error"},
                                {"param", nullptr},
                                {"code", code_of(status)}};
  HttpResponse response;
  response.status = status;
  response.body = nlohmann::json{{"error", error}}.dump(-1, ' ', false,
                                                        nlohmann::json::error_handler_t::replace);
  if (status == 503) response.headers.emplace_back("Retry-After", kRetryAfterSeconds);
  return response;
}

}  // namespace zi
