#include "engine/output.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/printable_text.h"
#include "base/standard_output.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

struct EventHeader {
  std::uint64_t index;
  std::uint64_t bytes;
  std::int32_t rank;
  std::int32_t kind;
};

std::string title(std::uint64_t index, int rank) {
  return fmt::format("[prompt {}, rank {}] ", index, rank);
}

std::string score_line(const Result& r, const std::string& prompt) {
  const std::string perplexity = std::isfinite(r.perplexity)
                                     ? fmt::format("perplexity {:.4f}", r.perplexity)
                                     : "nothing to score";
  return fmt::format("{}{} tokens, {}: {}\n", title(r.index, r.rank), r.prompt_tokens, perplexity,
                     prompt);
}

std::string suffix_of(const Result& r) {
  return fmt::format("  ({} tokens, {})\n", r.token_ids.size(), r.finish_reason);
}

}  // namespace

void append_event(std::string& outbox, const OutputEvent& event) {
  const EventHeader header{event.index, event.body.size(), event.rank,
                           static_cast<std::int32_t>(event.kind)};
  outbox.append(reinterpret_cast<const char*>(&header), sizeof(header));
  outbox += event.body;
}

std::vector<OutputEvent> read_events(std::string_view bytes) {
  std::vector<OutputEvent> events;
  while (!bytes.empty()) {
    EventHeader header{};
    if (bytes.size() < sizeof(header)) throw Error("an output event is cut off");
    std::memcpy(&header, bytes.data(), sizeof(header));
    bytes.remove_prefix(sizeof(header));
    if (bytes.size() < header.bytes) throw Error("an output event is cut off");
    if (header.kind < 0 || header.kind > static_cast<std::int32_t>(OutputEvent::Kind::kFailed)) {
      throw Error(fmt::format("an output event is of no known kind ({})", header.kind));
    }
    events.push_back({static_cast<OutputEvent::Kind>(header.kind), header.index, header.rank,
                      std::string(bytes.substr(0, header.bytes))});
    bytes.remove_prefix(header.bytes);
  }
  return events;
}

void OutputSink::started(std::uint64_t, int, const std::string&) {}
void OutputSink::told(std::uint64_t, const Delta&) {}
void OutputSink::failed(std::uint64_t, const std::string&) {}
void OutputSink::ranks(std::span<const RankStatus>) {}

JsonlSink::JsonlSink(ResultFile file, std::optional<std::uint64_t> total, bool show_progress)
    : file_(std::move(file)),
      progress_("sequences", static_cast<std::size_t>(total.value_or(0)), Progress::Unit::kItems,
                show_progress) {}

void JsonlSink::finished(const Result& result) {
  file_.write(result);
  progress_.add(1);
}

void JsonlSink::failed(std::uint64_t, const std::string&) { progress_.add(1); }

std::string ConsoleSink::shown(const std::string& text) const {
  return terminal_ ? printable_prose(text) : text;
}

void ConsoleSink::started(std::uint64_t index, int rank, const std::string& prompt) {
  // A sequence that starts after the one on the screen waits its turn, even if its index is lower:
  // `open_` is ordered by index, and the text on the screen must not be interrupted.
  const bool on_screen_changes = !open_.empty() && index < open_.begin()->first;
  if (on_screen_changes) print("\n");
  open_[index].pending = title(index, rank) + shown(prompt);
  print_front();
}

void ConsoleSink::told(std::uint64_t index, const Delta& delta) {
  open_[index].pending += shown(delta.text);
  print_front();
}

void ConsoleSink::finished(const Result& result) {
  if (!result.token_logprobs && !terminal_) {
    print(title(result.index, result.rank) + result.prompt + result.text + suffix_of(result));
    return;
  }
  if (result.token_logprobs) {
    open_.erase(result.index);
    print(score_line(result, shown(result.prompt)));
    return;
  }
  Open& open = open_[result.index];
  open.finished = true;
  open.suffix = suffix_of(result);
  print_front();
}

void ConsoleSink::failed(std::uint64_t index, const std::string&) {
  const auto found = open_.find(index);
  if (found == open_.end()) return;
  found->second.finished = true;
  found->second.suffix = "  (failed)\n";
  print_front();
}

void ConsoleSink::print_front() {
  while (!open_.empty()) {
    Open& front = open_.begin()->second;
    if (!front.pending.empty()) print(front.pending);
    front.pending.clear();
    if (!front.finished) return;
    print(front.suffix);
    open_.erase(open_.begin());
  }
}

}  // namespace zi
