#include "text/finished_prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "text/json_line.h"
#include "text/line_reader.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// A last line that a job could not finish begins as every line of ours does.
void check_cut_line(std::string_view text) {
  constexpr std::string_view kBegin = "{\"id\":";
  if (!text.starts_with(kBegin.substr(0, std::min(kBegin.size(), text.size())))) {
    throw PromptError("it is no result, and not ended by a newline");
  }
}

class SkipDone : public PromptSource {
 public:
  SkipDone(std::unique_ptr<PromptSource> source, FinishedPrompts done)
      : source_(std::move(source)), done_(std::move(done)) {}

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
    return *all - std::min<std::uint64_t>(*all, done_.size());
  }

 private:
  bool is_done(const Prompt& prompt) const {
    const auto found = done_.find(prompt.id);
    if (found == done_.end()) return false;
    const FinishedPrompt& done = found->second;
    const bool same =
        prompt.text ? *prompt.text == done.prompt : std::ssize(*prompt.ids) == done.prompt_tokens;
    if (same) return true;
    throw PromptError(fmt::format(
        "{}: id {} stands in the output file with another prompt; --resume goes on with the same "
        "prompts: give --output another file",
        prompt.where, prompt.id));
  }

  std::unique_ptr<PromptSource> source_;
  FinishedPrompts done_;
};

}  // namespace

FinishedPrompts finished_prompts(const std::filesystem::path& path) {
  std::error_code error;
  const auto type = std::filesystem::status(path, error).type();
  if (path == "-" || type == std::filesystem::file_type::not_found) return {};
  if (type != std::filesystem::file_type::regular) {
    throw IoError(path.string() + ": --resume needs a regular file as --output");
  }
  LineReader lines(open_for_reading(path), path.string(), std::numeric_limits<std::size_t>::max());
  FinishedPrompts done;
  while (const auto line = lines.next()) {
    if (line->whole && line->blank()) continue;
    try {
      if (!line->whole) {
        check_cut_line(line->text);
        continue;
      }
      const nlohmann::json json = parse_json_line(line->text);
      std::string id = id_of(json);
      if (id.empty()) throw PromptError("no `id`");
      if (!json.contains("finish_reason") && !json.contains("token_logprobs")) {
        throw PromptError("neither `finish_reason` nor `token_logprobs`");
      }
      if (!json.contains("prompt") || !json["prompt"].is_string() ||
          !json.contains("prompt_tokens") || !json["prompt_tokens"].is_number_integer()) {
        throw PromptError("no `prompt` or `prompt_tokens`");
      }
      done[std::move(id)] = {json["prompt"].get<std::string>(),
                             json["prompt_tokens"].get<std::int64_t>()};
    } catch (const PromptError& problem) {
      throw PromptError(
          fmt::format("{}:{} is not a line that zero-infer wrote: {}; give --output "
                      "another file, or run without --resume",
                      path.string(), line->number, problem.what()));
    }
  }
  return done;
}

std::unique_ptr<PromptSource> skip_done(std::unique_ptr<PromptSource> source,
                                        FinishedPrompts done) {
  return std::make_unique<SkipDone>(std::move(source), std::move(done));
}

}  // namespace zi
