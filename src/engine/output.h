#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/progress.h"
#include "text/result_file.h"

namespace zi {

/// What ranks tell rank 0 about their sequences, in the order in which it happened.
struct OutputEvent {
  enum class Kind : std::uint8_t { kStarted, kText, kFinished, kFailed };
  Kind kind = Kind::kText;
  std::uint64_t index = 0;  // of the prompt
  int rank = 0;
  std::string body;  // the prompt, new whole characters, Result::serialize(), or nothing
};

/// Events as bytes for the trip to rank 0, and back (throws Error when damaged).
void append_event(std::string& outbox, const OutputEvent& event);
std::vector<OutputEvent> read_events(std::string_view bytes);

/// Where sequences go, on rank 0.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  /// Whether it needs kStarted and kText events.
  virtual bool streams() const { return false; }
  virtual void started(std::uint64_t index, int rank, const std::string& prompt);
  virtual void text(std::uint64_t index, const std::string& text);
  virtual void finished(const Result& result) = 0;
  /// It ends without a result, started or not; its rank has said why.
  virtual void failed(std::uint64_t index);
};

/// One JSON object a line, on its way to the disk before the next pass; shows progress on stderr.
class JsonlSink final : public OutputSink {
 public:
  JsonlSink(ResultFile file, std::optional<std::uint64_t> total, bool show_progress);
  void finished(const Result& result) override;
  void failed(std::uint64_t index) override;

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
  void text(std::uint64_t index, const std::string& text) override;
  void finished(const Result& result) override;
  void failed(std::uint64_t index) override;

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
