#pragma once

#include <string_view>

#include "serve/generation_request.h"

namespace zi {

/// POST /v1/completions. Throws ApiError.
GenerationRequest read_completion_request(std::string_view body, const ServedModel& model,
                                          UnknownFields& unknown);

}  // namespace zi
