#include "serve/generation_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "base/printable_text.h"
#include "serve/api_error.h"
#include "text/settings_json.h"

namespace zi {
namespace {

using nlohmann::json;

constexpr std::int64_t kMostChoices = 1024;
constexpr std::int64_t kMostLogprobsOfAnswer = std::int64_t{1}
                                               << 22;  // some 17 bytes each, as JSON

std::uint64_t random_number() {
  thread_local std::mt19937_64 numbers = [] {
    std::random_device device;
    std::seed_seq seeds{device(), device(), device(), device()};
    return std::mt19937_64(seeds);
  }();
  return numbers();
}

/// Members that would change what is generated, in ways that the server has not: they are refused,
/// not left out.
struct RefusedField {
  const char* key;
  const char* why;
};
constexpr RefusedField kRefusedFields[] = {
    {"suffix", "text is only generated behind the prompt"},
    {"use_beam_search", "sequences are sampled, or greedy with `temperature` 0"},
    {"stop_token_ids", "give the texts of these tokens in `stop`"},
    {"guided_json", "output is not constrained"},
    {"guided_regex", "output is not constrained"},
    {"guided_choice", "output is not constrained"},
    {"guided_grammar", "output is not constrained"},
    {"structured_outputs", "output is not constrained"},
    {"chat_template", "the checkpoint's own template counts"},
    {"continue_final_message", "an answer always begins a message of its own"},
};

void refuse_fields(const json& object) {
  for (const RefusedField& field : kRefusedFields) {
    const json* const value = find_field(object, field.key);
    const bool nothing = value == nullptr || *value == false || *value == "" ||
                         (value->is_structured() && value->empty());
    if (nothing) continue;
    throw ApiError::bad_field(fmt::format("`{}` is not supported: {}", field.key, field.why),
                              field.key);
  }
  const json* const format = find_field(object, "response_format");
  if (format == nullptr) return;
  const json* const type = format->is_object() ? find_field(*format, "type") : nullptr;
  if (type != nullptr && *type == "text") return;
  throw ApiError::bad_field(
      "`response_format` is not {\"type\": \"text\"}: output is not constrained here",
      "response_format");
}

/// Names that requests have and that change nothing here.
const std::vector<std::string>& common_keys() {
  static const std::vector<std::string> keys = [] {
    std::vector<std::string> all = setting_keys();
    for (const char* key : {"model", "min_tokens", "prompt_logprobs", "n", "best_of", "stream",
                            "stream_options", "return_tokens_as_token_ids", "max_tokens",
                            "logprobs", "response_format", "user", "metadata", "store"}) {
      all.emplace_back(key);
    }
    for (const RefusedField& field : kRefusedFields) all.emplace_back(field.key);
    return all;
  }();
  return keys;
}

/// In the words of the OpenAI API, which some clients look for.
ApiError too_long(const PromptTooLong::Numbers& n, const char* param) {
  const std::string asked =
      n.prompt_tokens > 0
          ? fmt::format("you requested {} tokens ({} in the prompt, {} new ones)",
                        n.prompt_tokens + n.new_tokens, n.prompt_tokens, n.new_tokens)
      : n.new_tokens >= n.room
          ? fmt::format("you requested {} new tokens, which leaves no room for a prompt",
                        n.new_tokens)
          : fmt::format("the prompt has no room beside {} new tokens", n.new_tokens);
  return {
      400,
      fmt::format("This model's maximum context length is {} tokens. However, {}.", n.room, asked),
      {.param = param, .code = "context_length_exceeded"}};
}

}  // namespace

std::optional<int> read_int(const json& object, const char* key, std::int64_t most) {
  const auto count = read_count(object, key, 0, most);
  return count ? std::optional(static_cast<int>(*count)) : std::nullopt;
}

void read_common_fields(const json& object, const ServedModel& model, AnswerShape& shape,
                        OwnSettings& own) {
  check_model(object, model);
  refuse_fields(object);
  read_settings(object, own);
  if (!own.temperature && !model.defaults().temperature) own.temperature = 1.0F;
  own.min_new_tokens = read_count(object, "min_tokens", 0, kAnyCount);
  own.prompt_logprobs = read_int(object, "prompt_logprobs", kMostLogprobs);
  shape.prompt_logprobs = own.prompt_logprobs;
  shape.choices = static_cast<std::size_t>(read_count(object, "n", 1, kMostChoices).value_or(1));
  const auto best_of = read_count(object, "best_of", 1, kAnyCount);
  if (best_of && *best_of != static_cast<std::int64_t>(shape.choices)) {
    throw ApiError::bad_field(
        "`best_of` is not supported but for the value of `n`: every choice is returned", "best_of");
  }
  shape.stream = read_flag(object, "stream", false);
  if (shape.stream && shape.prompt_logprobs) {
    throw ApiError::bad_field("`prompt_logprobs` are not for a `stream`", "prompt_logprobs");
  }
  shape.tokens_as_ids = read_flag(object, "return_tokens_as_token_ids", false);
  if (const json* const options = find_field(object, "stream_options")) {
    if (!options->is_object()) {
      throw ApiError::bad_field("`stream_options` is not an object", "stream_options");
    }
    if (!shape.stream) {
      throw ApiError::bad_field("`stream_options` are for a `stream`", "stream_options");
    }
    shape.include_usage = read_flag(*options, "include_usage", false);
  }
  shape.model = model.name();
  shape.created = std::chrono::duration_cast<std::chrono::seconds>(
                      std::chrono::system_clock::now().time_since_epoch())
                      .count();
}

std::vector<std::string> with_common_keys(std::initializer_list<const char*> more) {
  std::vector<std::string> keys = common_keys();
  keys.insert(keys.end(), more.begin(), more.end());
  return keys;
}

std::string new_answer_id(const char* prefix) {
  return fmt::format("{}-{:016x}{:016x}", prefix, random_number(), random_number());
}

CheckedPrompt check_prompt(Prompt prompt, std::int64_t new_tokens, const ServedModel& model,
                           const char* param) {
  const bool open_end = !prompt.own.max_new_tokens;
  if (open_end) prompt.own.max_new_tokens = kAsManyAsFit;
  try {
    const std::unique_ptr<Sequence> sequence = model.admission().admit(std::move(prompt));
    CheckedPrompt checked{std::move(sequence->prompt), std::move(sequence->prompt_text)};
    checked.prompt.text.reset();
    checked.prompt.ids = std::move(sequence->tokens);
    checked.prompt.chat_hash.clear();
    OwnSettings& own = checked.prompt.own;
    if (open_end && new_tokens != kAsManyAsFit) {
      own.max_new_tokens = std::min(new_tokens, sequence->max_new_tokens);
    }
    const bool enough = *own.max_new_tokens == kAsManyAsFit ||
                        own.min_new_tokens.value_or(0) <= *own.max_new_tokens;
    if (enough) return checked;
    throw ApiError::bad_field(fmt::format("`min_tokens` {} is more than the {} new tokens at most",
                                          *own.min_new_tokens, *own.max_new_tokens),
                              "min_tokens");
  } catch (const PromptTooLong& error) {
    const PromptTooLong::Numbers& n = error.numbers();
    throw too_long(n, n.new_tokens >= n.room ? "max_tokens" : param);
  } catch (const PromptError& error) {
    // Some name another member, such as `logit_bias`.
    const std::string_view why = error.what();
    throw why.starts_with('`') ? ApiError::bad_request(error.what())
                               : ApiError::bad_field(error.what(), param);
  }
}

void check_count(std::size_t prompts, std::size_t choices, const ServedModel& model) {
  const std::size_t most = model.defaults().most_prompts;
  if (prompts <= most / choices) return;
  throw ApiError(400,
                 fmt::format("the request has {} prompts with {} choices each; the server takes up "
                             "to {} together (--max-queue)",
                             prompts, choices, most),
                 {.code = "too_many_prompts"});
}

void set_seed(Prompt& prompt, const ServedModel& model) {
  if (!prompt.own.seed) prompt.own.seed = model.defaults().seed.value_or(random_number());
}

void check_logprobs(const GenerationRequest& request, const ServedModel& model) {
  const AnswerShape& shape = request.shape;
  if (shape.stream) return;
  std::int64_t all = 0;
  for (const Prompt& prompt : request.prompts) {
    const std::int64_t tokens = std::ssize(*prompt.ids);
    const std::int64_t new_tokens = std::min(*prompt.own.max_new_tokens, model.room() - tokens);
    const auto of = [](const std::optional<int>& top, std::int64_t count) {
      return top ? (*top + 1) * count : 0;
    };
    all += static_cast<std::int64_t>(shape.choices) *
           (of(prompt.own.logprobs, new_tokens) + of(prompt.own.prompt_logprobs, tokens));
  }
  if (all <= kMostLogprobsOfAnswer) return;
  throw ApiError::bad_field(
      fmt::format(
          "the answer could have {} log-probabilities, and {} at most are kept for one: ask "
          "for fewer choices, tokens or alternatives, or for a stream",
          all, kMostLogprobsOfAnswer),
      "logprobs");
}

void check_model(const json& object, const ServedModel& model) {
  const json* const name = find_field(object, "model");
  if (name == nullptr) return;
  if (!name->is_string()) throw ApiError::bad_field("`model` is not a text", "model");
  if (*name == model.name()) return;
  throw ApiError(
      404,
      fmt::format("the model {} does not exist; this server has {}",
                  in_quotes(name->get_ref<const std::string&>()), in_quotes(model.name())),
      {.param = "model", .code = "model_not_found"});
}

}  // namespace zi
