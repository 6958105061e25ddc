#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "zero_infer/bytes.h"
#include "zero_infer/ops.h"

namespace zi {
namespace {

std::int64_t remaining(const Sequence& s) {
  return static_cast<std::int64_t>(s.tokens.size()) - s.computed;
}

}  // namespace

Scheduler::Scheduler(std::int64_t lanes, std::int64_t pass_tokens, std::int64_t kv_pages)
    : lanes_(lanes), pass_tokens_(std::max(pass_tokens, lanes)), kv_pages_(kv_pages) {
  for (std::int64_t page = kv_pages; page-- > 0;) free_.push_back(static_cast<std::int32_t>(page));
}

std::int64_t Scheduler::max_sequence_tokens() const { return kv_pages_ * kKvPageTokens; }

Sequence* Scheduler::admit(std::unique_ptr<Sequence> sequence) {
  sequence->order = admitted_++;
  sequences_.push_back(std::move(sequence));
  return sequences_.back().get();
}

void Scheduler::preempt(Sequence& s) {
  free_.insert(free_.end(), s.pages.rbegin(), s.pages.rend());
  s.pages.clear();
  s.computed = 0;
  ++preemptions_;
}

bool Scheduler::take_pages(Sequence& s, std::int64_t tokens, bool preempt_others) {
  const auto wanted = static_cast<std::size_t>(ceil_div(tokens, kKvPageTokens));
  const auto missing = [&] { return wanted > s.pages.size() + free_.size(); };
  if (missing() && preempt_others) {
    for (auto newer = sequences_.rbegin(); missing() && newer->get() != &s; ++newer) {
      if (!(*newer)->pages.empty()) preempt(**newer);
    }
  }
  if (missing()) return false;
  while (s.pages.size() < wanted) {
    s.pages.push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

std::vector<Chunk> Scheduler::compose() {
  const auto decoding =
      std::ranges::count_if(sequences_, [](const auto& s) { return remaining(*s) == 1; });
  std::int64_t prompt_rows = pass_tokens_ - decoding;
  std::vector<Chunk> chunks;
  for (const auto& owned : sequences_) {
    Sequence& s = *owned;
    const std::int64_t left = remaining(s);
    const std::int64_t count = left == 1 ? 1 : std::min(left, prompt_rows);
    if (count <= 0) continue;
    const bool oldest = &s == sequences_.front().get();
    // A sequence that starts from its first token waits until all of its tokens have room: else two
    // long prompts would preempt each other forever.
    const std::int64_t needed = s.pages.empty() && !oldest
                                    ? static_cast<std::int64_t>(s.tokens.size())
                                    : s.computed + count;
    const bool running = !s.pages.empty() || oldest;
    if (!take_pages(s, needed, running)) {
      if (!s.pages.empty()) preempt(s);
      continue;
    }
    if (left != 1) prompt_rows -= count;
    chunks.push_back({&s, s.computed, count});
  }
  return chunks;
}

std::unique_ptr<Sequence> Scheduler::retire(Sequence* sequence) {
  const auto at =
      std::ranges::find_if(sequences_, [&](const auto& s) { return s.get() == sequence; });
  std::unique_ptr<Sequence> out = std::move(*at);
  sequences_.erase(at);
  free_.insert(free_.end(), out->pages.rbegin(), out->pages.rend());
  out->pages.clear();
  return out;
}

}  // namespace zi
