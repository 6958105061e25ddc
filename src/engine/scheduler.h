#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/sequence.h"

namespace zi {

/// The rows of one sequence in a pass: tokens [first, first + count).
struct Chunk {
  Sequence* sequence = nullptr;
  std::int64_t first = 0;
  std::int64_t count = 0;
  /// Whether these are the last tokens so far: the next one is to be drawn.
  bool last() const { return first + count == static_cast<std::int64_t>(sequence->tokens.size()); }
};

/// Lanes and KV pages of one rank: decides which rows run in the next pass. One token of each
/// decoding lane, then chunks of the prompts in order of admission up to the token budget. When
/// pages run out the newest sequence is preempted: its pages are freed, and it is computed again
/// when there is room. The oldest sequence always continues, so that every pass makes progress.
class Scheduler {
 public:
  Scheduler(std::int64_t lanes, std::int64_t pass_tokens, std::int64_t kv_pages);

  std::int64_t lanes() const { return lanes_; }
  std::int64_t active() const { return static_cast<std::int64_t>(sequences_.size()); }
  std::int64_t free_lanes() const { return lanes_ - active(); }
  template <typename Predicate>
  bool all_of(Predicate predicate) const {
    return std::ranges::all_of(sequences_, [&](const auto& s) { return predicate(*s); });
  }
  /// The first sequence that it holds for; null where there is none.
  template <typename Predicate>
  Sequence* find(Predicate predicate) const {
    const auto at = std::ranges::find_if(sequences_, [&](const auto& s) { return predicate(*s); });
    return at == sequences_.end() ? nullptr : at->get();
  }
  /// Tokens of the longest sequence that the pages can hold.
  std::int64_t max_sequence_tokens() const;
  std::int64_t kv_pages() const { return kv_pages_; }
  std::int64_t kv_pages_used() const { return kv_pages_ - static_cast<std::int64_t>(free_.size()); }
  /// How often a sequence was preempted.
  std::int64_t preemptions() const { return preemptions_; }

  /// Takes a lane. Its prompt and new tokens must fit max_sequence_tokens.
  Sequence* admit(std::unique_ptr<Sequence> sequence);

  /// The rows of the next pass, in order of admission; their pages are taken. Empty only without
  /// sequences.
  std::vector<Chunk> compose();
  /// The chunk's keys and values are stored.
  void advance(const Chunk& chunk) { chunk.sequence->computed += chunk.count; }
  /// Frees the lane and the pages.
  std::unique_ptr<Sequence> retire(Sequence* sequence);

 private:
  /// Takes pages for the sequence's first `tokens` tokens; preempts newer sequences if it must.
  bool take_pages(Sequence& sequence, std::int64_t tokens, bool preempt_others);
  void preempt(Sequence& sequence);

  std::int64_t lanes_;
  std::int64_t pass_tokens_;
  std::int64_t kv_pages_;
  std::vector<std::unique_ptr<Sequence>> sequences_;  // in order of admission
  std::vector<std::int32_t> free_;
  std::uint64_t admitted_ = 0;
  std::int64_t preemptions_ = 0;
};

}  // namespace zi
