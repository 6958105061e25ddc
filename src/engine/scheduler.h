#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/kv_pages.h"
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
/// pages run out the newest sequence is preempted: its pages are given back, and it is computed
/// again when there is room. The oldest sequence always continues, so that every pass makes
/// progress, and every sequence is the oldest one some day.
///
/// With `share_prefixes` a sequence takes over the pages of its first tokens that other sequences
/// have computed, or compute in the same pass; also its own ones after a preemption. Its last token
/// it always computes, for the logits.
class Scheduler {
 public:
  Scheduler(std::int64_t lanes, std::int64_t pass_tokens, std::int64_t kv_pages,
            bool share_prefixes);

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
  /// How often a sequence was preempted.
  std::int64_t preemptions() const { return preemptions_; }
  /// Prompt tokens that were taken over instead of being computed; those that a sequence had
  /// computed itself before it was preempted do not count.
  std::int64_t cached_tokens() const { return cached_tokens_; }
  const KvPages& pages() const { return pages_; }

  /// Takes a lane. Its prompt and new tokens must fit max_sequence_tokens.
  Sequence* admit(std::unique_ptr<Sequence> sequence);

  /// The rows of the next pass, in order of admission; their pages are taken. Empty only without
  /// sequences. All of them must run, in one pass: a chunk may rely on pages that an earlier one
  /// fills in this pass. A pass stores all rows' keys and values of a layer before attention reads
  /// them.
  std::vector<Chunk> compose();
  /// The chunk's keys and values are stored.
  void advance(const Chunk& chunk);
  /// Frees the lane and gives back the pages. What is in those of a sequence that is not finite is
  /// forgotten.
  std::unique_ptr<Sequence> retire(Sequence* sequence);

 private:
  /// Follows the known pages of the sequence's first tokens as far as they go.
  void look_up(Sequence& s) const;
  /// Whether all tokens of a sequence without pages have room beside those who hold some.
  bool has_room(const Sequence& s) const;
  /// The sequence holds its known pages instead of computing them.
  void take_over(Sequence& s);
  /// Takes pages for the sequence's first `tokens` tokens; preempts newer sequences if it must.
  bool take_pages(Sequence& s, std::int64_t tokens);
  /// Makes the full pages of its first `tokens` tokens known; `stored`: their keys and values are
  /// there, else they come in this pass.
  void make_known(Sequence& s, std::int64_t tokens, bool stored);
  void preempt(Sequence& s);

  std::int64_t lanes_;
  std::int64_t pass_tokens_;
  bool share_prefixes_;
  KvPages pages_;
  std::vector<std::unique_ptr<Sequence>> sequences_;  // in order of admission
  std::uint64_t admitted_ = 0;
  std::int64_t preemptions_ = 0;
  std::int64_t cached_tokens_ = 0;
};

}  // namespace zi
