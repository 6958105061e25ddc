#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>

#include "chat/chat_template.h"
#include "engine/admission.h"
#include "engine/engine.h"
#include "text/tokenizer.h"

namespace zi {

/// What counts for requests, beyond what the job's options say: what they get that do not say it
/// themselves, and what they may ask for.
struct RequestDefaults {
  std::optional<std::int64_t> max_new_tokens{};  // of both APIs, in place of their own defaults
  bool temperature = false;                      // the job's counts, in place of the API's 1
  std::optional<std::uint64_t> seed{};           // nothing: another one for each request
  std::size_t most_prompts =
      std::numeric_limits<std::size_t>::max();  // times choices, of a request
};

/// What requests need to know of the model, once it is loaded. Immutable: any thread may use it.
class ServedModel {
 public:
  /// The engine outlives it.
  ServedModel(const Engine& engine, std::string name, RequestDefaults defaults);
  /// Of parts, for tests and fuzzers.
  ServedModel(std::string name, const Tokenizer& tokenizer, GenerationOptions options,
              std::int64_t cached_tokens, std::filesystem::path directory,
              RequestDefaults defaults = {});

  const std::string& name() const { return name_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const Admission& admission() const { return admission_; }
  const CheckpointChat& chat() const { return chat_; }
  const std::filesystem::path& directory() const { return directory_; }
  const GenerationOptions& options() const { return options_; }
  const RequestDefaults& defaults() const { return defaults_; }
  /// Tokens that a prompt and its answer can have together.
  std::int64_t room() const { return admission_.room(); }

 private:
  std::string name_;
  const Tokenizer* tokenizer_;
  GenerationOptions options_;
  Admission admission_;
  std::filesystem::path directory_;
  CheckpointChat chat_;
  RequestDefaults defaults_;
};

}  // namespace zi
