#include "serve/completion_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "serve/api_error.h"
#include "text/settings_json.h"

namespace zi {
namespace {

using nlohmann::json;

constexpr std::int64_t kCompletionTokens = 16;  // as the OpenAI API has it

/// `prompt` of a completion: a text, a list of texts, ids, or a list of ids.
std::vector<Prompt> read_prompts(const json& object) {
  constexpr const char* kWhat =
      "`prompt` is none of a text, a list of texts, a list of token ids and a list of such lists";
  const json* const value = find_field(object, "prompt");
  if (value == nullptr) throw ApiError::bad_field("no `prompt`", "prompt");
  std::vector<Prompt> prompts;
  const auto add = [&](const json& one) {
    Prompt& prompt = prompts.emplace_back();
    if (one.is_string()) {
      prompt.text = one.get<std::string>();
    } else {
      prompt.ids = read_ids(one, "prompt");
    }
  };
  if (value->is_string()) {
    add(*value);
  } else if (!value->is_array() || value->empty()) {
    throw ApiError::bad_field(kWhat, "prompt");
  } else if (value->front().is_number()) {
    add(*value);
  } else {
    for (const json& one : *value) {
      if (one.type() != value->front().type() || !(one.is_string() || one.is_array())) {
        throw ApiError::bad_field(kWhat, "prompt");
      }
      add(one);
    }
  }
  return prompts;
}

}  // namespace

GenerationRequest read_completion_request(std::string_view body, const ServedModel& model,
                                          UnknownFields& unknown) {
  static const std::vector<std::string> known = with_common_keys({"prompt", "echo"});
  const json object = parse_body(body);
  unknown.note(object, known, "/v1/completions");
  GenerationRequest request;
  AnswerShape& shape = request.shape;
  std::vector<Prompt> prompts = read_prompts(object);
  OwnSettings own;
  with_members([&] {
    read_common_fields(object, model, shape, own);
    own.max_new_tokens = read_count(object, "max_tokens", 0, kAnyCount);
    shape.logprobs = read_int(object, "logprobs", kMostLogprobs);
  });
  shape.echo = read_flag(object, "echo", false);
  own.logprobs = shape.logprobs;
  // An echo has log-probabilities of the prompt as well.
  if (shape.echo && shape.logprobs) {
    own.prompt_logprobs = std::max(*shape.logprobs, shape.prompt_logprobs.value_or(0));
  }
  check_count(prompts.size(), shape.choices, model);
  shape.id = new_answer_id("cmpl");
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    prompts[p].own = own;
    prompts[p].stream = shape.stream;
    prompts[p].where = fmt::format("{}, prompt {}", shape.id, p);
    CheckedPrompt checked =
        check_prompt(std::move(prompts[p]),
                     model.defaults().max_new_tokens.value_or(kCompletionTokens), model, "prompt");
    set_seed(checked.prompt, model);
    request.prompts.push_back(std::move(checked.prompt));
    request.prompt_texts.push_back(std::move(checked.text));
  }
  check_logprobs(request, model);
  return request;
}

}  // namespace zi
