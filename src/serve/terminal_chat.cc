#include "serve/terminal_chat.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/blocked_signals.h"
#include "base/printable_text.h"
#include "base/standard_output.h"
#include "base/system_error.h"
#include "base/utf8.h"
#include "text/chat_prompt.h"
#include "text/line_reader.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using nlohmann::json;
using std::chrono::steady_clock;

constexpr std::size_t kMostLineBytes = 16u << 20;
constexpr std::chrono::milliseconds kMostWait(100);
constexpr std::string_view kHelp =
    "/new begins another conversation, /system TEXT one with this system message, /exit ends\n"
    "(as the end of the input does); a \\ at the end of a line continues it on the next one;\n"
    "Ctrl-C ends the answer that is being given\n";

double seconds_between(steady_clock::time_point from, steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

TerminalChat::TerminalChat(std::shared_ptr<const CheckpointChat> chat, Options options,
                           FileDescriptor input)
    : chat_(std::move(chat)), options_(std::move(options)), wake_(::eventfd(0, EFD_CLOEXEC)) {
  if (wake_.get() < 0) throw IoError(fmt::format("eventfd: {}", system_message(errno)));
  chat_->load();
  begin_conversation(options_.system);
  {
    const BlockedSignals blocked;
    reader_ = std::thread([this, file = std::move(input)]() mutable { read(std::move(file)); });
  }
  if (options_.terminal) print("Type a message; /help says what else there is.\n");
  invite();
}

TerminalChat::~TerminalChat() {
  const std::uint64_t one = 1;
  // An eventfd at 0 always takes a 1; there is nobody to tell here if it did not.
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof(one));
  reader_.join();
}

void TerminalChat::read(FileDescriptor input) {
  std::exception_ptr failure;
  try {
    LineReader lines(std::move(input), "standard input", kMostLineBytes, wake_.get());
    while (const auto line = lines.next()) {
      if (line->too_long) {
        throw IoError(fmt::format("line {} of standard input is longer than {} MiB", line->number,
                                  kMostLineBytes >> 20));
      }
      const std::lock_guard lock(mutex_);
      lines_.emplace_back(line->text);
      changed_.notify_all();
    }
  } catch (...) {
    failure = std::current_exception();
  }
  const std::lock_guard lock(mutex_);
  ended_ = true;
  failure_ = failure;
  changed_.notify_all();
}

std::optional<std::string> TerminalChat::next_line() {
  std::unique_lock lock(mutex_);
  while (!lines_.empty()) {
    std::string line = std::move(lines_.front());
    lines_.pop_front();
    if (line.ends_with('\r')) line.pop_back();
    const bool last = ended_ && lines_.empty();
    if (line.ends_with('\\') && !last) {
      line.back() = '\n';
      continued_ += line;
      continue;
    }
    return std::exchange(continued_, {}) + line;
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  return std::nullopt;
}

void TerminalChat::begin_conversation(std::optional<std::string> system) {
  messages_ = json::array();
  if (system) messages_.push_back({{"role", "system"}, {"content", *std::move(system)}});
}

void TerminalChat::obey(std::string_view command) {
  constexpr std::string_view kSystem = "/system ";
  if (command == "/exit" || command == "/quit") {
    over_ = true;
  } else if (command == "/new") {
    begin_conversation(std::nullopt);
  } else if (command.starts_with(kSystem)) {
    begin_conversation(std::string(command.substr(kSystem.size())));
  } else {
    if (command != "/help") log_error(fmt::format("{} is no command", in_quotes(command)));
    print(kHelp);
  }
}

std::optional<Prompt> TerminalChat::prompt_of(const std::string& message) {
  if (const auto offset = first_invalid_utf8(message)) {
    log_error(fmt::format("invalid UTF-8 at byte {} of the message", *offset));
    return std::nullopt;
  }
  messages_.push_back({{"role", "user"}, {"content", message}});
  Prompt prompt;
  prompt.index = next_index_++;
  prompt.id = std::to_string(prompt.index);
  prompt.where = fmt::format("message {}", next_index_);
  prompt.own = options_.own;
  prompt.stream = true;
  try {
    set_chat(prompt, parse_chat_line(json{{"messages", messages_}}.dump()), *chat_);
  } catch (const PromptError& error) {
    log_error(error.what());
    messages_.erase(messages_.size() - 1);
    return std::nullopt;
  }
  return prompt;
}

std::vector<Prompt> TerminalChat::take(std::size_t most, bool wait_for_one) {
  if (wait_for_one) wait();
  while (most > 0 && !answering_ && !over_) {
    const std::optional<std::string> line = next_line();
    if (!line) break;
    if (line->starts_with('/')) {
      obey(*line);
    } else if (line->find_first_not_of(" \t\n") != std::string::npos) {
      if (std::optional<Prompt> prompt = prompt_of(*line)) {
        answering_ = true;
        answer_.clear();
        new_tokens_ = 0;
        asked_ = steady_clock::now();
        return {*std::move(prompt)};
      }
    }
    if (!over_) invite();
  }
  return {};
}

bool TerminalChat::exhausted() {
  if (over_) return true;
  const std::lock_guard lock(mutex_);
  return ended_ && lines_.empty() && !failure_;
}

void TerminalChat::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, kMostWait, [&] { return !lines_.empty() || ended_; });
}

bool TerminalChat::interrupt() {
  if (!answering_) return false;
  interrupted_ = true;
  return true;
}

std::vector<std::uint64_t> TerminalChat::cancelled() {
  if (!std::exchange(interrupted_, false) || !answering_) return {};
  end_answer(answer_, "stopped");
  return {next_index_ - 1};
}

void TerminalChat::told(std::uint64_t index, const Delta& delta) {
  if (!answering_ || index + 1 != next_index_) return;  // of an answer that was stopped
  if (new_tokens_ == 0) first_token_ = steady_clock::now();
  new_tokens_ += delta.new_tokens;
  answer_ += delta.text;
  show(delta.text);
}

void TerminalChat::finished(const Result& result) {
  if (!answering_ || result.index + 1 != next_index_) return;
  show(result.text.substr(std::min(answer_.size(), result.text.size())));
  end_answer(result.text, result.finish_reason == "length" ? "cut at its greatest length" : "");
}

void TerminalChat::failed(std::uint64_t index, const std::string&) {
  if (!answering_ || index + 1 != next_index_) return;
  answering_ = false;
  messages_.erase(messages_.size() - 1);  // the question; its rank has said why
  invite();
}

void TerminalChat::end_answer(const std::string& answer, const std::string& remark) {
  answering_ = false;
  messages_.push_back({{"role", "assistant"}, {"content", answer}});
  print("\n");
  if (!options_.quiet) {
    std::string line = fmt::format("{} tokens", new_tokens_);
    if (new_tokens_ > 0) {
      line += fmt::format(", the first after {:.2f} s", seconds_between(asked_, first_token_));
    }
    if (const double rest = seconds_between(first_token_, steady_clock::now());
        new_tokens_ > 1 && rest > 0) {
      line += fmt::format(", then {:.1f} a second", static_cast<double>(new_tokens_ - 1) / rest);
    }
    log_info(remark.empty() ? line : line + "; " + remark);
  }
  invite();
}

void TerminalChat::invite() const {
  if (options_.terminal) print("> ");
}

void TerminalChat::show(const std::string& text) const {
  if (!text.empty()) print(options_.terminal ? printable_prose(text) : text);
}

}  // namespace zi
