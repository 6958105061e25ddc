#include "serve/http/options_response.h"

#include <string>

namespace zi {
namespace {

constexpr const char* kMethods = "GET, HEAD, POST, OPTIONS";
constexpr const char* kMaxAgeSeconds = "600";

}  // namespace

HttpResponse options_response(const HttpRequest& request, bool cors) {
  HttpResponse response;
  response.status = 204;
  response.headers.emplace_back("Allow", kMethods);
  if (cors && !request.header("access-control-request-method").empty()) {
    response.headers.emplace_back("Access-Control-Allow-Methods", kMethods);
    // The names that are asked for: `*` would leave Authorization out.
    if (const auto names = request.header("access-control-request-headers"); !names.empty()) {
      response.headers.emplace_back("Access-Control-Allow-Headers", names);
    }
    response.headers.emplace_back("Access-Control-Max-Age", kMaxAgeSeconds);
  }
  return response;
}

}  // namespace zi
