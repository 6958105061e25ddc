#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/file_descriptor.h"
#include "text/prompt_source.h"
#include "text/settings_record.h"

namespace zi {

/// What an output file says of a finished prompt; it has a hash in place of the prompt, because a
/// job may have millions of them.
struct FinishedPrompt {
  std::uint64_t hash = 0;  // of `prompt`, or of `prompt_ids` where the line has them
  std::int64_t prompt_tokens = 0;
  bool by_ids = false;  // it was asked with `prompt_ids`
  /// Of messages, whose text may differ from day to day (strftime_now), where it was asked with
  /// them.
  std::string chat_hash;
  std::int64_t new_tokens = 0;  // of a generated text
  bool at_limit = false;        // which ended there: its job's limit was `new_tokens`
  std::uint32_t settings = 0;   // by what it was made: index into FinishedPrompts::settings

  static FinishedPrompt of_text(const std::string& text, std::int64_t prompt_tokens);
  static FinishedPrompt of_ids(const std::vector<std::int32_t>& ids);
  /// Whether this line answers the prompt. Lines of older versions have no `prompt_ids`, only what
  /// they decode to: there the number of tokens decides.
  bool answers(const Prompt& prompt) const;
  /// Whether a job with this limit of new tokens may have ended the text there.
  bool fits_limit(std::int64_t max_new_tokens) const;
};

/// What an output file holds, for --resume.
struct FinishedPrompts {
  std::unordered_map<std::string, FinishedPrompt> by_id;  // JSON text
  /// Numbers of the first lines with and without `token_logprobs`: of --score, and of generated
  /// text.
  std::optional<std::uint64_t> scored_line, generated_line;
  /// Best ids of each token of the first generated line: --logprobs of the job that wrote it.
  std::int64_t logprobs = 0;
  /// What lines say in `settings`, each text once and without the model; the first is empty, for
  /// lines of older versions, which say nothing of it.
  std::vector<std::string> settings{""};
  /// The models that lines name, each with the number of the first one.
  std::map<std::string, std::uint64_t> models;
  std::uint64_t lines_without_settings = 0;

  /// Reads whole lines; a last one that is cut counts only as one of ours. Throws PromptError
  /// naming a line that is not. `name` is for messages.
  static FinishedPrompts read(FileDescriptor file, const std::string& name);

  /// A file holds results of one kind. Throws ConfigError when it has some of the other; warns when
  /// it has other --logprobs. (Of other settings, --max-new-tokens among them, see skip_done.)
  void check_kind(bool score, std::int64_t logprobs, const std::string& name) const;
  /// Where lines do not say by what they were made.
  void warn_of_missing_settings(const std::string& name) const;
};

/// Throws ConfigError where a line of the file was made by another model than `model` (see
/// FinishedPrompts::models).
void check_models(const std::map<std::string, std::uint64_t>& models, const std::string& model,
                  const std::string& name);

/// Whether skip_done tells where a text was ended by another limit of new tokens than its prompt
/// has now.
enum class ChangedLimits { kTell, kIgnore };

/// Leaves out prompts whose id is in `done`; `total` is reduced by their number. `take` throws
/// PromptError where the id is there with another prompt (the output belongs to other prompts) or
/// was drawn with other settings than `job` and its prompt ask for now; limits of new tokens may
/// change, which is told once.
std::unique_ptr<PromptSource> skip_done(std::unique_ptr<PromptSource> source,
                                        std::shared_ptr<const FinishedPrompts> done,
                                        RecordedJob job, ChangedLimits limits);

}  // namespace zi
