#include "text/finished_prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include "base/printable_text.h"
#include "text/json_line.h"
#include "text/line_reader.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using nlohmann::json;

/// Of equal bytes in this process; it is never stored.
std::uint64_t hash_of(std::string_view bytes) { return std::hash<std::string_view>()(bytes); }

/// A last line that a job could not finish begins like every line that we write.
void check_cut_line(std::string_view text) {
  constexpr std::string_view kBegin = "{\"id\":";
  if (!text.starts_with(kBegin.substr(0, std::min(kBegin.size(), text.size())))) {
    throw PromptError("it is not a result, and does not end with a newline");
  }
}

FinishedPrompt asked_prompt(const json& line) {
  const auto prompt = line.find("prompt");
  const auto tokens = line.find("prompt_tokens");
  if (prompt == line.end() || !prompt->is_string() || tokens == line.end() ||
      !tokens->is_number_integer()) {
    throw PromptError("no `prompt` or `prompt_tokens`");
  }
  if (const auto ids = line.find("prompt_ids"); ids != line.end()) {
    const auto is_id = [](const json& id) { return id.is_number_integer(); };
    if (!ids->is_array() || !std::ranges::all_of(*ids, is_id)) {
      throw PromptError("`prompt_ids` is not an array of integers");
    }
    return FinishedPrompt::of_ids(ids->get<std::vector<std::int32_t>>());
  }
  FinishedPrompt finished =
      FinishedPrompt::of_text(prompt->get_ref<const std::string&>(), tokens->get<std::int64_t>());
  if (const auto chat = line.find("chat_hash"); chat != line.end() && chat->is_string()) {
    finished.chat_hash = chat->get<std::string>();
  }
  return finished;
}

FinishedPrompt finished_prompt(const json& line) {
  FinishedPrompt finished = asked_prompt(line);
  const auto ids = line.find("token_ids");
  if (ids != line.end() && ids->is_array()) {
    finished.new_tokens = static_cast<std::int64_t>(ids->size());
    finished.at_limit = line.value("finish_reason", json()) == "length";
  }
  return finished;
}

/// --logprobs of the job that wrote a line.
std::int64_t logprobs_of(const json& line) {
  const auto logprobs = line.find("logprobs");
  if (logprobs == line.end() || !logprobs->is_array() || logprobs->empty()) return 0;
  const auto top = logprobs->front().find("top");
  return top != logprobs->front().end() ? static_cast<std::int64_t>(top->size()) : 0;
}

class SkipDone : public PromptSource {
 public:
  SkipDone(std::unique_ptr<PromptSource> source, std::shared_ptr<const FinishedPrompts> done,
           std::optional<std::int64_t> max_new_tokens)
      : source_(std::move(source)), done_(std::move(done)), max_new_tokens_(max_new_tokens) {}

  void wait() override { source_->wait(); }

  std::vector<Prompt> take(std::size_t most, bool wait) override {
    for (;;) {
      std::vector<Prompt> prompts = source_->take(most, wait);
      if (prompts.empty()) return prompts;
      std::erase_if(prompts, [&](const Prompt& prompt) { return is_done(prompt); });
      if (!prompts.empty()) return prompts;
    }
  }
  bool exhausted() override { return source_->exhausted(); }
  std::optional<std::uint64_t> total() const override {
    const auto all = source_->total();
    if (!all) return std::nullopt;
    return *all - std::min<std::uint64_t>(*all, done_->by_id.size());
  }

 private:
  bool is_done(const Prompt& prompt) {
    const auto found = done_->by_id.find(prompt.id);
    if (found == done_->by_id.end()) return false;
    if (found->second.answers(prompt)) {
      compare_limit(prompt, found->second);
      return true;
    }
    throw PromptError(
        fmt::format("{}: id {} is in the output file with another prompt; --resume needs the same "
                    "prompts: give --output another file",
                    prompt.where, in_quotes(prompt.id)));
  }

  void compare_limit(const Prompt& prompt, const FinishedPrompt& finished) {
    if (!max_new_tokens_) return;
    const std::int64_t limit = prompt.own.max_new_tokens.value_or(*max_new_tokens_);
    if (finished.fits_limit(limit)) return;
    max_new_tokens_.reset();  // one warning is enough
    log_warning(fmt::format(
        "{}: id {} is in the output file with {} new tokens, and its limit is now {} ({}): what is "
        "finished stays as it is; to have all prompts run with the new limit, give --output "
        "another file",
        prompt.where, in_quotes(prompt.id), finished.new_tokens, limit,
        prompt.own.max_new_tokens ? "its `max_new_tokens`" : "--max-new-tokens"));
  }

  std::unique_ptr<PromptSource> source_;
  std::shared_ptr<const FinishedPrompts> done_;
  std::optional<std::int64_t> max_new_tokens_;
};

}  // namespace

FinishedPrompt FinishedPrompt::of_text(const std::string& text, std::int64_t prompt_tokens) {
  return {.hash = hash_of(text), .prompt_tokens = prompt_tokens, .by_ids = false, .chat_hash = {}};
}

FinishedPrompt FinishedPrompt::of_ids(const std::vector<std::int32_t>& ids) {
  const std::string_view bytes(reinterpret_cast<const char*>(ids.data()),
                               ids.size() * sizeof(std::int32_t));
  return {.hash = hash_of(bytes),
          .prompt_tokens = static_cast<std::int64_t>(ids.size()),
          .by_ids = true,
          .chat_hash = {}};
}

bool FinishedPrompt::answers(const Prompt& prompt) const {
  if (!prompt.chat_hash.empty() || !chat_hash.empty()) return prompt.chat_hash == chat_hash;
  if (prompt.text) return !by_ids && hash == hash_of(*prompt.text);
  if (by_ids) return hash == of_ids(*prompt.ids).hash;
  return prompt_tokens == std::ssize(*prompt.ids);
}

bool FinishedPrompt::fits_limit(std::int64_t max_new_tokens) const {
  return at_limit ? new_tokens == max_new_tokens : new_tokens <= max_new_tokens;
}

FinishedPrompts FinishedPrompts::read(FileDescriptor file, const std::string& name) {
  LineReader lines(std::move(file), name, std::numeric_limits<std::size_t>::max());
  FinishedPrompts done;
  while (const auto line = lines.next()) {
    if (line->whole && line->blank()) continue;
    try {
      if (!line->whole) {
        check_cut_line(line->text);
        continue;
      }
      const json object = parse_json_line(line->text);
      std::string id = id_of(object);
      if (id.empty()) throw PromptError("no `id`");
      const bool scored = object.contains("token_logprobs");
      if (!scored && !object.contains("finish_reason")) {
        throw PromptError("neither `finish_reason` nor `token_logprobs`");
      }
      std::optional<std::uint64_t>& first = scored ? done.scored_line : done.generated_line;
      if (!first && !scored) done.logprobs = logprobs_of(object);
      if (!first) first = line->number;
      done.by_id[std::move(id)] = finished_prompt(object);
    } catch (const PromptError& problem) {
      throw PromptError(
          fmt::format("{}:{} is not a line that zero-infer wrote: {}; give --output "
                      "another file, or run without --resume",
                      name, line->number, problem.what()));
    }
  }
  return done;
}

void FinishedPrompts::check_kind(bool score, std::int64_t wanted, const std::string& name) const {
  if (const auto other = score ? generated_line : scored_line) {
    throw ConfigError(
        fmt::format("{}:{} was written {} --score, this job runs {} it; --resume needs results of "
                    "the same kind: give --output another file",
                    name, *other, score ? "without" : "with", score ? "with" : "without"));
  }
  if (generated_line && logprobs != wanted) {
    log_warning(
        fmt::format("{} was written with --logprobs {}, this job has --logprobs {}: its "
                    "lines will differ in that",
                    name, logprobs, wanted));
  }
}

std::unique_ptr<PromptSource> skip_done(std::unique_ptr<PromptSource> source,
                                        std::shared_ptr<const FinishedPrompts> done,
                                        std::optional<std::int64_t> max_new_tokens) {
  return std::make_unique<SkipDone>(std::move(source), std::move(done), max_new_tokens);
}

}  // namespace zi
