#include "text/prompt_source.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <variant>

#include "base/blocked_signals.h"
#include "base/file_descriptor.h"
#include "base/printable_text.h"
#include "base/system_error.h"
#include "base/utf8.h"
#include "text/chat_prompt.h"
#include "text/line_reader.h"
#include "text/prompt_line.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr std::size_t kMostLineBytes = 64u << 20;
constexpr std::size_t kMostQueuedItems = 1024;
constexpr std::size_t kMostQueuedBytes = 64u << 20;
constexpr off_t kMostCountedBytes = off_t{1} << 30;
constexpr std::chrono::milliseconds kMostWait(100);

class FlagPrompts : public PromptSource {
 public:
  FlagPrompts(const std::vector<std::string>& texts, const CheckpointChat* chat) {
    for (std::size_t i = 0; i < texts.size(); ++i) {
      Prompt prompt;
      prompt.index = i;
      prompt.id = std::to_string(i);
      prompt.text = texts[i];
      prompt.where = fmt::format("--prompt {}", i + 1);
      if (texts[i].empty()) throw PromptError(prompt.where + ": empty prompt");
      if (const auto offset = first_invalid_utf8(texts[i])) {
        throw PromptError(fmt::format("{}: invalid UTF-8 at byte {}", prompt.where, *offset));
      }
      if (chat != nullptr) render(prompt, *chat);
      prompts_.push_back(std::move(prompt));
    }
  }

  std::vector<Prompt> take(std::size_t most, bool) override {
    const std::size_t count = std::min(most, prompts_.size() - next_);
    const auto begin = prompts_.begin() + static_cast<std::ptrdiff_t>(next_);
    next_ += count;
    return {begin, begin + static_cast<std::ptrdiff_t>(count)};
  }
  bool exhausted() override { return next_ == prompts_.size(); }
  std::optional<std::uint64_t> total() const override { return prompts_.size(); }

 private:
  static void render(Prompt& prompt, const CheckpointChat& chat) {
    try {
      set_chat(prompt, ChatRequest::of_user(*prompt.text), chat);
    } catch (const PromptError& error) {
      throw PromptError(fmt::format("{}: {}", prompt.where, error.what()));
    }
  }

  std::vector<Prompt> prompts_;
  std::size_t next_ = 0;
};

bool is_plain_file(const std::filesystem::path& path) {
  struct stat status {};
  return path != "-" && ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

/// A prompt, or what is wrong with a line.
struct Item {
  std::variant<Prompt, std::string> value;
  std::size_t bytes = 0;
};

class JsonlPrompts : public PromptSource {
 public:
  JsonlPrompts(const std::filesystem::path& path, PromptErrorCallback on_error,
               std::shared_ptr<const CheckpointChat> chat)
      : path_(path),
        name_(path == "-" ? "standard input" : path.string()),
        on_error_(std::move(on_error)),
        chat_(std::move(chat)),
        is_file_(is_plain_file(path)),
        wake_(::eventfd(0, EFD_CLOEXEC)) {
    if (wake_.get() < 0) throw IoError(fmt::format("eventfd: {}", system_message(errno)));
    LineReader lines(open_for_reading(path), name_, kMostLineBytes, wake_.get());
    const BlockedSignals blocked;
    reader_ = std::thread([this, lines = std::move(lines)]() mutable { read(lines); });
  }

  ~JsonlPrompts() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    const std::uint64_t one = 1;
    // An eventfd at 0 always takes a 1; there is nobody to tell here if it did not.
    [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof(one));
    reader_.join();
  }

  std::vector<Prompt> take(std::size_t most, bool wait) override {
    const auto deadline = std::chrono::steady_clock::now() + kMostWait;
    std::vector<Prompt> prompts;
    while (most > 0) {
      const std::vector<std::string> errors = pop(most, wait ? &deadline : nullptr, prompts);
      for (const std::string& error : errors) on_error_(error);
      if (errors.empty() || !prompts.empty()) break;  // else: look again after the bad lines
    }
    return prompts;
  }

  /// Waits until the first line of a regular file is read. Throws where it says that no line can be
  /// used: better now than when the model is loaded.
  void check_start() {
    if (!is_file_) return;
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !queue_.empty() || ended_; });
    if (!queue_.empty() || !failure_) return;
    try {
      std::rethrow_exception(failure_);
    } catch (const CheckpointError&) {
      throw;
    } catch (...) {  // a failed read: `take` tells
    }
  }

  bool exhausted() override {
    const std::lock_guard lock(mutex_);
    return ended_ && queue_.empty() && !failure_;
  }

  void wait() override {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kMostWait, [&] { return !queue_.empty() || ended_; });
  }

  /// Counted by reading the file once more, when first asked for.
  std::optional<std::uint64_t> total() const override {
    if (!counted_) {
      counted_ = true;
      struct stat status {};
      if (is_file_ && ::stat(path_.c_str(), &status) == 0 && status.st_size <= kMostCountedBytes) {
        LineReader lines(open_for_reading(path_), name_, kMostLineBytes);
        std::uint64_t count = 0;
        while (const auto line = lines.next()) count += line->blank() ? 0 : 1;
        total_ = count;
      }
    }
    return total_;
  }

 private:
  using TimePoint = std::chrono::steady_clock::time_point;

  /// Moves prompts from the queue, waiting for the first item until `deadline` if there is one.
  /// Returns the messages that were between them.
  std::vector<std::string> pop(std::size_t most, const TimePoint* deadline,
                               std::vector<Prompt>& prompts) {
    std::vector<std::string> errors;
    std::unique_lock lock(mutex_);
    if (deadline != nullptr) {
      changed_.wait_until(lock, *deadline, [&] { return !queue_.empty() || ended_; });
    }
    // Prompts read before the failure come first.
    if (queue_.empty() && failure_) std::rethrow_exception(failure_);
    while (!queue_.empty() && prompts.size() < most) {
      Item& item = queue_.front();
      queued_bytes_ -= item.bytes;
      if (auto* prompt = std::get_if<Prompt>(&item.value)) {
        prompts.push_back(std::move(*prompt));
      } else {
        errors.push_back(std::move(std::get<std::string>(item.value)));
      }
      queue_.pop_front();
    }
    lock.unlock();
    changed_.notify_all();
    return errors;
  }

  /// The reader thread.
  void read(LineReader& lines) {
    std::exception_ptr failure;
    try {
      bool running = true;
      while (running) {
        const auto line = lines.next();
        if (!line) break;
        if (!line->blank()) running = push({parse(*line), line->text.size()});
      }
    } catch (...) {
      failure = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
      failure_ = failure;
    }
    changed_.notify_all();
  }

  std::variant<Prompt, std::string> parse(const LineReader::Line& line) {
    // Lines that cannot be used count too: mending one does not change the ids of the others.
    const std::uint64_t index = next_index_++;
    const std::string where = fmt::format("{}:{}", name_, line.number);
    try {
      if (line.too_long) {
        throw PromptError(fmt::format("longer than {} MiB", kMostLineBytes >> 20));
      }
      Prompt prompt = parse_prompt_line(line.text, chat_.get());
      const bool own_id = !prompt.id.empty();
      if (!own_id) prompt.id = std::to_string(index);
      const auto [known, fresh] = line_of_id_.emplace(prompt.id, line.number);
      if (!fresh) {
        throw PromptError(fmt::format("`id` {}{} is already used in line {}", in_quotes(prompt.id),
                                      own_id ? "" : " (the line's number, as it has no `id`)",
                                      known->second));
      }
      prompt.index = index;
      prompt.where = where;
      return prompt;
    } catch (const PromptError& error) {
      return fmt::format("{}: {}", where, error.what());
    } catch (const CheckpointError& error) {  // of the chat template
      if (index == 0 && is_file_) throw;      // `check_start` tells, before the model is loaded
      return fmt::format("{}: {}", where, error.what());
    }
  }

  /// Waits for room; false when the source is being destroyed.
  bool push(Item item) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      const bool room = queue_.size() < kMostQueuedItems && queued_bytes_ < kMostQueuedBytes;
      return stop_ || room;
    });
    if (stop_) return false;
    queued_bytes_ += item.bytes;
    queue_.push_back(std::move(item));
    lock.unlock();
    changed_.notify_all();
    return true;
  }

  const std::filesystem::path path_;
  const std::string name_;
  const PromptErrorCallback on_error_;
  const std::shared_ptr<const CheckpointChat> chat_;
  const bool is_file_;
  const FileDescriptor wake_;
  mutable bool counted_ = false;
  mutable std::optional<std::uint64_t> total_;

  // The reader thread's own.
  std::uint64_t next_index_ = 0;
  std::unordered_map<std::string, std::uint64_t> line_of_id_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> queue_;
  std::size_t queued_bytes_ = 0;
  bool stop_ = false;
  bool ended_ = false;
  std::exception_ptr failure_;
  std::thread reader_;
};

}  // namespace

std::unique_ptr<PromptSource> prompts_from_flags(const std::vector<std::string>& texts,
                                                 std::shared_ptr<const CheckpointChat> chat) {
  return std::make_unique<FlagPrompts>(texts, chat.get());
}

std::unique_ptr<PromptSource> prompts_from_jsonl(const std::filesystem::path& path,
                                                 PromptErrorCallback on_error,
                                                 std::shared_ptr<const CheckpointChat> chat) {
  auto source = std::make_unique<JsonlPrompts>(path, std::move(on_error), std::move(chat));
  source->check_start();
  return source;
}

}  // namespace zi
