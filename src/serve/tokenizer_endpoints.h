#pragma once

#include <string_view>

#include "serve/json_output.h"
#include "serve/request_fields.h"
#include "serve/served_model.h"

namespace zi {

/// Endpoints about tokens, as vLLM has them. They throw ApiError.

/// POST /tokenize {"prompt" or "messages", "add_special_tokens", "return_token_strs"} -> {"count",
/// "max_model_len", "tokens", "token_strs"}.
Json tokenize(std::string_view body, const ServedModel& model, UnknownFields& unknown);
/// POST /detokenize {"tokens"} -> {"prompt"}.
Json detokenize(std::string_view body, const ServedModel& model, UnknownFields& unknown);
/// GET /tokenizer_info: the checkpoint's tokenizer_config.json, with the texts of special tokens
/// and the chat template.
Json tokenizer_info(const ServedModel& model);
/// GET /v1/models, and one of them.
Json model_list(const ServedModel& model, std::int64_t created);
Json model_card(const ServedModel& model, std::int64_t created);

}  // namespace zi
