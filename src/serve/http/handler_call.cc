#include "serve/http/handler_call.h"

#include <fmt/format.h>

#include <exception>
#include <string>
#include <utility>

#include "zero_infer/log.h"

namespace zi {

void call_handler(const HttpHandler& handler, HttpRequest& request, Answer& answer,
                  const std::shared_ptr<HttpReply>& reply) {
  const std::string what = fmt::format("{} {} of {}", request.method, request.path, request.peer);
  const auto fail = [&](const char* reason) {
    log_error(fmt::format("HTTP server: {}: {}", what, reason));
    answer.fail();
  };
  try {
    handler(std::move(request), reply);
  } catch (const std::exception& error) {
    fail(error.what());
  } catch (...) {
    fail("an exception of an unknown kind");
  }
}

}  // namespace zi
