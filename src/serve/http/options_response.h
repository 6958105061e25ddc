#pragma once

#include "serve/http/http_message.h"

namespace zi {

/// The answer to an OPTIONS request. With `cors`, one that a browser sends ahead of a request of a
/// page from another origin (Fetch, "CORS-preflight request") is told that every header may come;
/// the origin itself is in the head of every answer.
HttpResponse options_response(const HttpRequest& request, bool cors);

}  // namespace zi
