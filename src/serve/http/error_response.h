#pragma once

#include <string_view>

#include "serve/http/http_message.h"

namespace zi {

/// {"error": {"message", "type", "param": null, "code"}}, as clients of the OpenAI API read it;
/// `type` and `code` follow from the status. 503 comes with Retry-After.
HttpResponse error_response(int status, std::string_view message);

}  // namespace zi
