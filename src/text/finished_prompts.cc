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
           RecordedJob job, ChangedLimits limits)
      : source_(std::move(source)),
        done_(std::move(done)),
        job_(std::move(job)),
        tells_limit_(limits == ChangedLimits::kTell) {
    job_.model.clear();
  }

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
      compare_settings(prompt, found->second);
      compare_limit(prompt, found->second);
      return true;
    }
    throw PromptError(
        fmt::format("{}: id {} is in the output file with another prompt; --resume needs the same "
                    "prompts: give --output another file",
                    prompt.where, in_quotes(prompt.id)));
  }

  void compare_settings(const Prompt& prompt, const FinishedPrompt& finished) const {
    const std::string& there = done_->settings[finished.settings];
    if (there.empty()) return;
    const std::string here = settings_record(job_, prompt);
    if (there == here) return;
    const std::string difference = describe_difference(there, here);
    if (difference.empty()) return;
    throw PromptError(
        fmt::format("{}: id {} is in the output file with other settings: {}; --resume needs the "
                    "same ones: give --output another file",
                    prompt.where, in_quotes(prompt.id), difference));
  }

  void compare_limit(const Prompt& prompt, const FinishedPrompt& finished) {
    if (!tells_limit_ || job_.scored) return;
    const std::int64_t limit = prompt.own.max_new_tokens.value_or(job_.settings.max_new_tokens);
    if (finished.fits_limit(limit)) return;
    tells_limit_ = false;  // one warning is enough
    log_warning(fmt::format(
        "{}: id {} is in the output file with {} new tokens, and its limit is now {} ({}): what is "
        "finished stays as it is; to have all prompts run with the new limit, give --output "
        "another file",
        prompt.where, in_quotes(prompt.id), finished.new_tokens, limit,
        prompt.own.max_new_tokens ? "its `max_new_tokens`" : "--max-new-tokens"));
  }

  std::unique_ptr<PromptSource> source_;
  std::shared_ptr<const FinishedPrompts> done_;
  RecordedJob job_;
  bool tells_limit_;
};

/// Takes `settings` out of a line: its index among those of all lines.
std::uint32_t take_settings(json& line, std::uint64_t number, FinishedPrompts& done,
                            std::unordered_map<std::string, std::uint32_t>& known) {
  const auto settings = line.find("settings");
  if (settings == line.end() || !settings->is_object()) {
    ++done.lines_without_settings;
    return 0;
  }
  if (const auto model = settings->find("model"); model != settings->end()) {
    if (model->is_string()) done.models.emplace(model->get<std::string>(), number);
    settings->erase(model);
  }
  const std::string text = settings->dump();
  const auto [at, is_new] = known.emplace(text, done.settings.size());
  if (is_new) done.settings.push_back(text);
  return at->second;
}

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
  std::unordered_map<std::string, std::uint32_t> known_settings;
  while (const auto line = lines.next()) {
    if (line->whole && line->blank()) continue;
    try {
      if (!line->whole) {
        check_cut_line(line->text);
        continue;
      }
      json object = parse_json_line(line->text);
      std::string id = id_of(object);
      if (id.empty()) throw PromptError("no `id`");
      const bool scored = object.contains("token_logprobs");
      if (!scored && !object.contains("finish_reason")) {
        throw PromptError("neither `finish_reason` nor `token_logprobs`");
      }
      std::optional<std::uint64_t>& first = scored ? done.scored_line : done.generated_line;
      if (!first && !scored) done.logprobs = logprobs_of(object);
      if (!first) first = line->number;
      FinishedPrompt finished = finished_prompt(object);
      finished.settings = take_settings(object, line->number, done, known_settings);
      done.by_id[std::move(id)] = std::move(finished);
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

void FinishedPrompts::warn_of_missing_settings(const std::string& name) const {
  if (lines_without_settings == 0) return;
  log_warning(fmt::format(
      "{}: {} line{} not say by which model and with which settings {} made (an older version "
      "wrote {}); they are not compared with those of this job",
      name, lines_without_settings, lines_without_settings == 1 ? " does" : "s do",
      lines_without_settings == 1 ? "it was" : "they were",
      lines_without_settings == 1 ? "it" : "them"));
}

void check_models(const std::map<std::string, std::uint64_t>& models, const std::string& model,
                  const std::string& name) {
  for (const auto& [other, line] : models) {
    if (same_model(other, model)) continue;
    throw ConfigError(
        fmt::format("{}:{} was made by another model: {} there, {} here; --resume needs the same "
                    "one: give --output another file",
                    name, line, in_quotes(other), in_quotes(model)));
  }
}

std::unique_ptr<PromptSource> skip_done(std::unique_ptr<PromptSource> source,
                                        std::shared_ptr<const FinishedPrompts> done,
                                        RecordedJob job, ChangedLimits limits) {
  return std::make_unique<SkipDone>(std::move(source), std::move(done), std::move(job), limits);
}

}  // namespace zi
