#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "text/prompt.h"

namespace zi {

class CheckpointChat;

/// As much of prompts (Prompt::given_bytes) is cut into tokens before it is needed. A token has at
/// least a byte of text, so that the tokens have four times as much at most.
inline constexpr std::size_t kMostKeptBytes = 16u << 20;

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
  /// Waits until one of the functions here may say something new, at most about 2 s.
  virtual void wait() {}
  /// Indices of prompts that were taken and whose results nobody wants any more, each told once.
  virtual std::vector<std::uint64_t> cancelled() { return {}; }
};

using PromptErrorCallback = std::function<void(const std::string& message)>;

/// With `chat` each text is the message of a user. Throws PromptError for an empty text, for
/// invalid UTF-8, and what the template refuses; CheckpointError where there is no template.
std::unique_ptr<PromptSource> prompts_from_flags(
    const std::vector<std::string>& texts, std::shared_ptr<const CheckpointChat> chat = nullptr);
/// `path` may be `-` for standard input. One JSON object a line: {"prompt": ..}, {"prompt_ids":
/// [..]} or {"messages": [..]}, which `chat` renders, optional `id` (string or integer), and
/// settings of its own (OwnSettings); other keys are ignored; so are empty lines. A malformed line,
/// or one with an id that an earlier line has, is reported with file, line and reason, and the
/// others run; it keeps its index. Reads ahead on a thread of its own, with a bounded queue. Throws
/// IoError when the file cannot be opened; `take` throws it when reading fails, and CheckpointError
/// for messages without a template that can be used: already this function does, where the first
/// line of a regular file has messages.
std::unique_ptr<PromptSource> prompts_from_jsonl(
    const std::filesystem::path& path, PromptErrorCallback on_error,
    std::shared_ptr<const CheckpointChat> chat = nullptr);

}  // namespace zi
