#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/file_descriptor.h"
#include "chat/chat_template.h"
#include "engine/output.h"
#include "text/prompt_source.h"

namespace zi {

/// A conversation by lines of text: each line is a message of the user and, with all messages
/// before it, the next prompt; its answer is printed as it comes. `/new` begins another
/// conversation, `/system TEXT` begins one with this system message, `/exit` or the end of the
/// input ends it; a `\` at the end of a line continues it on the next one. For rank 0; all but
/// `interrupt` is for the thread of the passes.
class TerminalChat final : public PromptSource, public OutputSink {
 public:
  struct Options {
    bool terminal = false;              // somebody types: say when it is their turn
    bool quiet = false;                 // nothing but answers
    std::optional<std::string> system;  // that the conversation begins with
    OwnSettings own;                    // of every answer
  };
  /// Reads `input` on a thread of its own.
  TerminalChat(std::shared_ptr<const CheckpointChat> chat, Options options, FileDescriptor input);
  ~TerminalChat() override;

  std::vector<Prompt> take(std::size_t most, bool wait) override;
  bool exhausted() override;
  std::optional<std::uint64_t> total() const override { return std::nullopt; }
  void wait() override;
  std::vector<std::uint64_t> cancelled() override;

  void told(std::uint64_t index, const Delta& delta) override;
  void finished(const Result& result) override;
  void failed(std::uint64_t index, const std::string& why) override;

  /// Ends the answer that is being given; false where none is.
  bool interrupt();

 private:
  using TimePoint = std::chrono::steady_clock::time_point;

  void read(FileDescriptor input);
  /// The next message or command, whole; nothing where there is none yet.
  std::optional<std::string> next_line();
  /// Does what a line that begins with `/` says.
  void obey(std::string_view command);
  std::optional<Prompt> prompt_of(const std::string& message);
  void begin_conversation(std::optional<std::string> system);
  /// Ends the answer on the screen, whose text so far is `answer`.
  void end_answer(const std::string& answer, const std::string& remark);
  void invite() const;
  void show(const std::string& text) const;

  const std::shared_ptr<const CheckpointChat> chat_;
  const Options options_;
  const FileDescriptor wake_;

  nlohmann::json messages_ = nlohmann::json::array();
  std::string continued_;  // lines that ended with `\`
  std::uint64_t next_index_ = 0;
  bool answering_ = false;
  bool interrupted_ = false;  // `cancelled` has yet to tell
  bool over_ = false;         // /exit
  std::string answer_;        // so far
  std::int64_t new_tokens_ = 0;
  TimePoint asked_, first_token_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::string> lines_;
  bool ended_ = false;  // the input
  std::exception_ptr failure_;
  std::thread reader_;
};

}  // namespace zi
