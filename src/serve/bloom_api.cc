#include "serve/bloom_api.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "serve/generation_request.h"
#include "text/settings_json.h"

namespace zi {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t kDefaultNewTokens = 100;  // as that server allows
constexpr std::int64_t kDefaultTopK = 50;        // of transformers' generate()

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Json begin_answer(std::int64_t query_id, const std::string& time) {
  Json answer;
  answer["query_id"] = query_id;
  answer["total_time_taken"] = time;
  return answer;
}

/// An answer to all prompts of a request at once.
class BatchAnswer : public PendingAnswer {
 public:
  BatchAnswer(std::shared_ptr<HttpReply> reply, std::int64_t query_id, std::size_t prompts)
      : reply_(std::move(reply)), query_id_(query_id), results_(prompts), unfinished_(prompts) {}

  void finished(std::size_t number, Result result) final {
    results_[number] = std::move(result);
    if (--unfinished_ > 0) return;
    Json answer = begin_answer(query_id_, fmt::format("{:.2f} secs", seconds_since(start_)));
    add_results(results_, answer);
    answer["is_encoder_decoder"] = false;
    HttpResponse response;
    response.body = dump(answer);
    reply_->send(std::move(response));
  }
  void failed(const ApiError& error) final { reply_->send(error.response()); }

 protected:
  virtual void add_results(const std::vector<Result>& results, Json& answer) = 0;

 private:
  std::shared_ptr<HttpReply> reply_;
  std::int64_t query_id_;
  std::vector<Result> results_;
  std::size_t unfinished_;
  Clock::time_point start_ = Clock::now();
};

class GenerateAnswer final : public BatchAnswer {
 public:
  /// `texts`: what each answer begins with.
  GenerateAnswer(std::shared_ptr<HttpReply> reply, std::int64_t query_id,
                 std::vector<std::string> texts)
      : BatchAnswer(std::move(reply), query_id, texts.size()), texts_(std::move(texts)) {}

 protected:
  void add_results(const std::vector<Result>& results, Json& answer) override {
    answer["text"] = Json::array();
    answer["num_generated_tokens"] = Json::array();
    for (std::size_t i = 0; i < results.size(); ++i) {
      answer["text"].push_back(texts_[i] + results[i].text);
      answer["num_generated_tokens"].push_back(results[i].token_ids.size());
    }
  }

 private:
  std::vector<std::string> texts_;
};

class ForwardAnswer final : public BatchAnswer {
 public:
  /// `response_tokens`: of each prompt, at its end.
  ForwardAnswer(std::shared_ptr<HttpReply> reply, std::int64_t query_id,
                std::vector<std::size_t> response_tokens)
      : BatchAnswer(std::move(reply), query_id, response_tokens.size()),
        response_tokens_(std::move(response_tokens)) {}

 protected:
  void add_results(const std::vector<Result>& results, Json& answer) override {
    double sum = 0;
    std::size_t tokens = 0;
    for (std::size_t i = 0; i < results.size(); ++i) {
      const std::vector<TokenLogprob>& logprobs = *results[i].prompt_logprobs;
      // The first token of a prompt has no log-probability.
      const std::size_t count = std::min(response_tokens_[i], logprobs.size());
      for (auto token = logprobs.end() - static_cast<std::ptrdiff_t>(count);
           token != logprobs.end(); ++token) {
        sum -= static_cast<double>(token->logprob);
      }
      tokens += count;
    }
    answer["nll"] =
        tokens > 0 ? sum / static_cast<double>(tokens) : std::numeric_limits<double>::quiet_NaN();
  }

 private:
  std::vector<std::size_t> response_tokens_;
};

/// Settings as transformers' generate() has them.
OwnSettings read_generate_settings(const nlohmann::json& object) {
  OwnSettings own;
  read_settings(object, own);
  if (read_flag(object, "do_sample", false)) {
    if (!own.temperature) own.temperature = 1.0F;
    if (!own.top_k) own.top_k = static_cast<int>(kDefaultTopK);
  } else {
    own.temperature = 0.0F;
  }
  own.max_new_tokens =
      read_count(object, "max_new_tokens", 1, std::numeric_limits<std::int64_t>::max());
  return own;
}

}  // namespace

Json BloomApi::query_ids() const {
  Json ids;
  ids["generate_query_id"] = generate_id_.load();
  ids["tokenize_query_id"] = tokenize_id_.load();
  ids["forward_query_id"] = forward_id_.load();
  return ids;
}

Json BloomApi::tokenize(std::string_view body, const ServedModel& model, UnknownFields& unknown) {
  const Clock::time_point start = Clock::now();
  const nlohmann::json object = parse_body(body);
  unknown.note(object, {"text"}, "/tokenize/");
  Json ids = Json::array();
  Json mask = Json::array();
  try {
    for (const std::string& text : read_texts(object, "text")) {
      const auto tokens = model.tokenizer().encode(text, model.options().special_tokens);
      mask.push_back(std::vector<int>(tokens.size(), 1));
      ids.push_back(tokens);
    }
  } catch (const PromptError& error) {
    throw ApiError::bad_field(error.what(), "text");
  }
  Json answer =
      begin_answer(tokenize_id_++, fmt::format("{:.2f} msecs", seconds_since(start) * 1000));
  answer["token_ids"] = std::move(ids);
  answer["attention_mask"] = std::move(mask);
  answer["is_encoder_decoder"] = false;
  return answer;
}

BloomApi::Run BloomApi::generate(std::string_view body, std::shared_ptr<HttpReply> reply,
                                 const ServedModel& model, UnknownFields& unknown) {
  static const std::vector<std::string> known = [] {
    std::vector<std::string> keys = setting_keys();
    keys.insert(keys.end(),
                {"text", "do_sample", "max_new_tokens", "min_length", "remove_input_from_output"});
    return keys;
  }();
  const nlohmann::json object = parse_body(body);
  unknown.note(object, known, "/generate/");
  Run run;
  std::vector<std::string> texts;
  try {
    const OwnSettings own = read_generate_settings(object);
    const std::int64_t min_length =
        read_count(object, "min_length", 0, std::numeric_limits<std::int64_t>::max()).value_or(0);
    const bool without_input = read_flag(object, "remove_input_from_output", false);
    const std::vector<std::string> given = read_texts(object, "text");
    check_count(given.size(), 1, model);
    for (const std::string& text : given) {
      Prompt prompt;
      prompt.text = text;
      prompt.own = own;
      prompt.where = fmt::format("/generate/ {}, text {}", generate_id_.load(), texts.size());
      CheckedPrompt checked = check_prompt(std::move(prompt), kDefaultNewTokens, model, "text");
      // That length counts the prompt, as generate() does for decoders.
      const std::int64_t least = min_length - std::ssize(*checked.prompt.ids);
      if (least > 0)
        checked.prompt.own.min_new_tokens = std::min(least, *checked.prompt.own.max_new_tokens);
      set_seed(checked.prompt, model);
      run.prompts.push_back(std::move(checked.prompt));
      texts.push_back(without_input ? std::string() : std::move(checked.text));
    }
  } catch (const PromptError& error) {
    throw ApiError::bad_request(error.what());
  }
  run.answer = std::make_shared<GenerateAnswer>(std::move(reply), generate_id_++, std::move(texts));
  return run;
}

BloomApi::Run BloomApi::forward(std::string_view body, std::shared_ptr<HttpReply> reply,
                                const ServedModel& model, UnknownFields& unknown) {
  const nlohmann::json object = parse_body(body);
  unknown.note(object, {"conditioning_text", "response"}, "/forward/");
  const std::vector<std::string> texts = read_texts(object, "conditioning_text");
  const std::vector<std::string> responses = read_texts(object, "response");
  if (texts.size() != responses.size()) {
    throw ApiError::bad_field(fmt::format("`response` has {} texts, `conditioning_text` {}",
                                          responses.size(), texts.size()),
                              "response");
  }
  check_count(texts.size(), 1, model);
  Run run;
  std::vector<std::size_t> response_tokens;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    Prompt prompt;
    try {
      prompt.ids = model.tokenizer().encode(texts[i], model.options().special_tokens);
      const auto response = model.tokenizer().encode(responses[i]);
      if (response.empty()) {
        throw ApiError::bad_field(fmt::format("`response` {} has no token to score", i),
                                  "response");
      }
      prompt.ids->insert(prompt.ids->end(), response.begin(), response.end());
      response_tokens.push_back(response.size());
    } catch (const PromptError& error) {
      throw ApiError::bad_request(error.what());
    }
    prompt.own.max_new_tokens = 0;
    prompt.own.prompt_logprobs = 0;
    prompt.where = fmt::format("/forward/ {}, text {}", forward_id_.load(), i);
    run.prompts.push_back(check_prompt(std::move(prompt), 0, model, "conditioning_text").prompt);
  }
  run.answer =
      std::make_shared<ForwardAnswer>(std::move(reply), forward_id_++, std::move(response_tokens));
  return run;
}

}  // namespace zi
