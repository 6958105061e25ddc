#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/link.h"
#include "base/progress.h"
#include "text/result_file.h"

namespace zi {

/// What ranks tell rank 0 about their sequences, in the order in which it happened.
struct OutputEvent {
  enum class Kind : std::uint8_t { kStarted, kDelta, kFinished, kFailed };
  Kind kind = Kind::kDelta;
  std::uint64_t index = 0;  // of the prompt
  int rank = 0;
  std::string body;  // the prompt, Delta::serialize(), Result::serialize(), or why it failed
};

/// Events as bytes for the trip to rank 0, and back (throws Error when damaged).
void append_event(std::string& outbox, const OutputEvent& event);
std::vector<OutputEvent> read_events(std::string_view bytes);

/// What a rank is doing, and what it has done since the job began.
struct RankStatus {
  std::int64_t lanes = 0;
  std::int64_t active = 0;  // sequences
  std::int64_t kv_pages = 0;
  std::int64_t kv_pages_used = 0;
  std::int64_t passes = 0;
  std::int64_t prompt_rows = 0;  // rows of passes that were prompt tokens
  std::int64_t new_tokens = 0;
  std::int64_t preemptions = 0;
  PerLink<std::uint64_t> moved;  // bytes of weights, and of activations where weights stay
};

/// Where sequences go, on rank 0.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  /// Whether it needs kStarted and kDelta events of all prompts.
  virtual bool streams() const { return false; }
  virtual void started(std::uint64_t index, int rank, const std::string& prompt);
  virtual void told(std::uint64_t index, const Delta& delta);
  virtual void finished(const Result& result) = 0;
  /// It ends without a result, started or not; its rank has logged why.
  virtual void failed(std::uint64_t index, const std::string& why);
  /// What each rank is doing, once a pass and while it waits for prompts.
  virtual void ranks(std::span<const RankStatus> ranks);
};

/// One JSON object a line, on its way to the disk before the next pass; shows progress on stderr.
class JsonlSink final : public OutputSink {
 public:
  JsonlSink(ResultFile file, std::optional<std::uint64_t> total, bool show_progress);
  void finished(const Result& result) override;
  void failed(std::uint64_t index, const std::string& why) override;

 private:
  ResultFile file_;
  Progress progress_;
};

/// Readable text on stdout: streams the earliest unfinished sequence as it comes on a terminal, and
/// whole sequences as they finish elsewhere.
class ConsoleSink final : public OutputSink {
 public:
  explicit ConsoleSink(bool terminal) : terminal_(terminal) {}
  bool streams() const override { return terminal_; }
  void started(std::uint64_t index, int rank, const std::string& prompt) override;
  void told(std::uint64_t index, const Delta& delta) override;
  void finished(const Result& result) override;
  void failed(std::uint64_t index, const std::string& why) override;

 private:
  struct Open {
    std::string pending;  // not yet printed
    std::string suffix;   // set when finished
    bool finished = false;
  };
  void print_front();
  /// What a model writes, or a prompt holds, must not steer the terminal. Elsewhere it stays as it
  /// is.
  std::string shown(const std::string& text) const;

  bool terminal_;
  std::map<std::uint64_t, Open> open_;  // by prompt: the first one is on the screen
};

/// Collects results in memory, for benchmarks and tests.
class MemorySink final : public OutputSink {
 public:
  void finished(const Result& result) override { results.push_back(result); }
  std::vector<Result> results;
};

}  // namespace zi
