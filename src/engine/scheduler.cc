#include "engine/scheduler.h"

#include <algorithm>
#include <span>
#include <utility>

#include "zero_infer/bytes.h"
#include "zero_infer/ops.h"

namespace zi {
namespace {

std::int64_t token_count(const Sequence& s) { return static_cast<std::int64_t>(s.tokens.size()); }

std::int64_t remaining(const Sequence& s) { return token_count(s) - s.computed; }

KvPages::Tokens tokens_of_page(const Sequence& s, std::int64_t page) {
  return KvPages::Tokens(s.tokens.data() + page * kKvPageTokens, kKvPageTokens);
}

}  // namespace

Scheduler::Scheduler(std::int64_t lanes, std::int64_t pass_tokens, std::int64_t kv_pages,
                     bool share_prefixes)
    : lanes_(lanes),
      pass_tokens_(std::max(pass_tokens, lanes)),
      share_prefixes_(share_prefixes),
      pages_(kv_pages) {}

std::int64_t Scheduler::max_sequence_tokens() const { return pages_.count() * kKvPageTokens; }

Sequence* Scheduler::admit(std::unique_ptr<Sequence> sequence) {
  sequence->order = admitted_++;
  sequences_.push_back(std::move(sequence));
  return sequences_.back().get();
}

void Scheduler::preempt(Sequence& s) {
  pages_.release(s.pages);
  s.pages.clear();
  s.known = {};
  s.reached = std::max(s.reached, s.computed);
  s.computed = 0;
  ++preemptions_;
}

void Scheduler::look_up(Sequence& s) const {
  if (!share_prefixes_ || !s.may_share) return;
  if (!pages_.is_valid(s.known)) s.known = {};
  const std::int64_t most = (token_count(s) - 1) / kKvPageTokens;
  while (s.known.pages < most) {
    const KvPages::Page next = pages_.find(s.known.last, tokens_of_page(s, s.known.pages));
    if (next == KvPages::kNone) return;
    s.known = pages_.extended(s.known, next);
  }
}

bool Scheduler::has_room(const Sequence& s) const {
  const std::int64_t missing = ceil_div(token_count(s), kKvPageTokens) - s.known.pages;
  return missing <= pages_.idle() - pages_.idle_of(s.known);
}

void Scheduler::take_over(Sequence& s) {
  const std::int64_t tokens = s.known.pages * kKvPageTokens;
  if (tokens <= s.computed) return;
  const auto first = static_cast<std::size_t>(s.computed / kKvPageTokens);
  const auto end = static_cast<std::size_t>(s.known.pages);
  s.pages.resize(std::max(s.pages.size(), end), KvPages::kNone);
  KvPages::Page page = s.known.last;
  for (std::size_t at = end; at-- > first; page = pages_.before(page)) {
    pages_.hold(page);
    const KvPages::Page own = std::exchange(s.pages[at], page);
    if (own != KvPages::kNone) pages_.release({&own, 1});  // partly computed, or not yet
  }
  // Where it has tokens of its own already, it has reached them.
  const std::int64_t counted = tokens - std::max(s.computed, s.reached);
  if (counted > 0) {
    s.cached_tokens += counted;
    cached_tokens_ += counted;
  }
  s.computed = tokens;
}

bool Scheduler::take_pages(Sequence& s, std::int64_t tokens) {
  const std::int64_t wanted = ceil_div(tokens, kKvPageTokens);
  const auto missing = [&] { return wanted > std::ssize(s.pages) + pages_.idle(); };
  for (auto newer = sequences_.rbegin(); missing() && newer->get() != &s; ++newer) {
    if (!(*newer)->pages.empty()) preempt(**newer);
  }
  if (missing()) return false;
  while (std::ssize(s.pages) < wanted) s.pages.push_back(pages_.take());
  return true;
}

void Scheduler::make_known(Sequence& s, std::int64_t tokens, bool stored) {
  if (!share_prefixes_) return;
  while ((s.known.pages + 1) * kKvPageTokens <= tokens) {
    KvPages::Page& own = s.pages[static_cast<std::size_t>(s.known.pages)];
    const KvPages::Tokens content = tokens_of_page(s, s.known.pages);
    const KvPages::Page there = pages_.find(s.known.last, content);
    if (there == KvPages::kNone) {
      pages_.name(own, s.known.last, content);
    } else if (stored) {  // computed by two sequences: one page is enough
      pages_.hold(there);
      const KvPages::Page twin = std::exchange(own, there);
      pages_.release({&twin, 1});
    } else {
      return;  // this pass still writes to its own
    }
    s.known = pages_.extended(s.known, own);
  }
}

std::vector<Chunk> Scheduler::compose() {
  const auto decoding =
      std::ranges::count_if(sequences_, [](const auto& s) { return remaining(*s) == 1; });
  std::int64_t prompt_rows = pass_tokens_ - decoding;
  std::vector<Chunk> chunks;
  for (const auto& owned : sequences_) {
    Sequence& s = *owned;
    const bool decodes = remaining(s) == 1;
    if (!decodes && prompt_rows <= 0) continue;
    look_up(s);
    // A sequence that starts from its first token waits until all of its tokens have room: else two
    // long prompts would preempt each other forever.
    const bool starts = s.pages.empty() && &s != sequences_.front().get();
    if (starts && !has_room(s)) continue;
    take_over(s);
    const std::int64_t count = decodes ? 1 : std::min(remaining(s), prompt_rows);
    if (!take_pages(s, starts ? token_count(s) : s.computed + count)) {
      preempt(s);
      continue;
    }
    if (!decodes) prompt_rows -= count;
    chunks.push_back({&s, s.computed, count});
    make_known(s, s.computed + count, false);
  }
  return chunks;
}

void Scheduler::advance(const Chunk& chunk) {
  chunk.sequence->computed += chunk.count;
  make_known(*chunk.sequence, chunk.sequence->computed, true);
}

std::unique_ptr<Sequence> Scheduler::retire(Sequence* sequence) {
  const auto at =
      std::ranges::find_if(sequences_, [&](const auto& s) { return s.get() == sequence; });
  std::unique_ptr<Sequence> out = std::move(*at);
  sequences_.erase(at);
  pages_.release(out->pages, out->not_finite);
  out->pages.clear();
  return out;
}

}  // namespace zi
