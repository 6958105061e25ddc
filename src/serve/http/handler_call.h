#pragma once

#include <memory>

#include "serve/http/answer.h"
#include "serve/http/http_reply.h"

namespace zi {

/// Runs the handler for one request. What it throws fails the answer, with a line in the log.
void call_handler(const HttpHandler& handler, HttpRequest& request, Answer& answer,
                  const std::shared_ptr<HttpReply>& reply);

}  // namespace zi
