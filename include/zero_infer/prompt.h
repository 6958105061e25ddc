#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/file_descriptor.h"

namespace zi {

/// One prompt as the user gave it. Exactly one of `text` and `ids` is set.
struct Prompt {
  std::uint64_t index = 0;  // order in the input, from 0: names the sequence everywhere
  std::string id;           // JSON value as text (`"a"`, `17`); the index where the file has none
  std::optional<std::string> text;
  std::optional<std::vector<std::int32_t>> ids;
  std::optional<std::int64_t> max_new_tokens;
  std::string where;  // `prompts.jsonl:18` or `--prompt 2`, for messages

  /// Compact bytes for the trip between ranks, and back (throws Error when damaged).
  std::string serialize() const;
  static Prompt deserialize(std::string_view bytes);
};

/// Where prompts come from; used by rank 0 only.
class PromptSource {
 public:
  virtual ~PromptSource() = default;
  /// Up to `most` further prompts; fewer, even none, when no more can be had at once (a pipe that
  /// is slow). With `wait` it waits for the first one, but for at most about 0.1 s, so that the
  /// caller stays able to end: none is the end only when `exhausted` says so. Lines that cannot be
  /// used are skipped and reported, on this thread, through the callback given at construction.
  virtual std::vector<Prompt> take(std::size_t most, bool wait) = 0;
  /// True once every prompt has been taken and every bad line reported.
  virtual bool exhausted() = 0;
  /// How many prompts there are in all, lines that cannot be used included, where that is known:
  /// flags and files of up to 1 GiB; not pipes. Reads the file when first called.
  virtual std::optional<std::uint64_t> total() const = 0;
};

using PromptErrorCallback = std::function<void(const std::string& message)>;

/// Throws PromptError for an empty text and for invalid UTF-8.
std::unique_ptr<PromptSource> prompts_from_flags(const std::vector<std::string>& texts);
/// `path` may be `-` for standard input. One JSON object a line: {"prompt": ..} or {"prompt_ids":
/// [..]}, optional `id` (string or integer), `max_new_tokens`; other keys are ignored; empty lines
/// too. A malformed line, or one with an id that an earlier line has, is reported with file, line
/// and reason, and the others run; it keeps its index. Reads ahead by a thread of its own with a
/// bounded queue. Throws IoError when the file cannot be opened; `take` throws it when reading
/// fails.
std::unique_ptr<PromptSource> prompts_from_jsonl(const std::filesystem::path& path,
                                                 PromptErrorCallback on_error);
/// What an output file says of a finished prompt.
struct FinishedPrompt {
  std::string prompt;
  std::int64_t prompt_tokens = 0;
};
/// By id (JSON text).
using FinishedPrompts = std::map<std::string, FinishedPrompt>;

/// Leaves out prompts whose id is in `done`; `total` is less by their number. `take` throws
/// PromptError where the id is there with another prompt: the output belongs to other prompts.
std::unique_ptr<PromptSource> skip_done(std::unique_ptr<PromptSource> source, FinishedPrompts done);

/// Parses one line of a prompt file; `index` and `where` are left alone, and `id` is empty where
/// the line has none. Throws PromptError with the reason (not the place).
Prompt parse_prompt_line(std::string_view line);

struct TokenLogprob {
  std::int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<std::int32_t, float>> top;
};

/// A finished sequence: one line of the output file.
struct Result {
  std::uint64_t index = 0;
  std::string id;  // JSON value as text
  int rank = 0;
  std::string prompt;  // the text; for prompt_ids its decoding
  std::int64_t prompt_tokens = 0;
  std::string text;
  std::vector<std::int32_t> token_ids;
  std::string finish_reason;                          // eos | length | stop; empty when scored
  std::optional<std::vector<TokenLogprob>> logprobs;  // with --logprobs
  std::optional<std::vector<float>> token_logprobs;   // with --score: of tokens 1.. of the prompt
  double perplexity = 0;                              // with --score

  /// The JSON object of the output file, without a newline. Invalid UTF-8 becomes U+FFFD; a
  /// non-finite number becomes null. Scored results have `token_logprobs` and `perplexity` in place
  /// of `text`, `token_ids`, `finish_reason` and `logprobs`.
  std::string to_json() const;
  /// Compact bytes with exact numbers for the trip between ranks, and back (throws Error when
  /// damaged).
  std::string serialize() const;
  static Result deserialize(std::string_view bytes);
};

/// The output file of a job, written by rank 0: each line is whole and on its way to the disk when
/// `write` returns.
class ResultFile {
 public:
  /// `path` may be `-` for standard output. Creates or truncates the file; with `append` (--resume)
  /// keeps it and cuts off an unfinished last line. Throws IoError (directory missing, not
  /// writable).
  ResultFile(const std::filesystem::path& path, bool append);
  ~ResultFile();
  ResultFile(const ResultFile&) = delete;
  ResultFile& operator=(const ResultFile&) = delete;
  /// Throws IoError naming the path (disk full, ..); the file then holds whole lines only.
  void write(const Result& result);

 private:
  std::string path_;
  FileDescriptor file_;
};

/// The prompts of the whole lines in an output file, for --resume; empty if there is no file.
/// Throws PromptError naming a line that is not one of ours, also a cut last one, and IoError for
/// what is no regular file.
FinishedPrompts finished_prompts(const std::filesystem::path& path);

}  // namespace zi
