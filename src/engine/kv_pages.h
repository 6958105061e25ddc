#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "zero_infer/ops.h"

namespace zi {

/// The pages of a rank's KV cache: who holds them, and what is known to be in them.
///
/// A page full of keys and values can be named, by its tokens and by the named page before it: so
/// by all tokens from a sequence's first one on. Sequences that begin with the same tokens find
/// such pages and hold them together; nobody writes to them any more. Names are compared token by
/// token, so two different beginnings are never taken for one.
///
/// A named page that nobody holds stays cached until its memory is needed. A sequence takes its
/// pages in order and gives back all of them at once, so whoever holds a page holds those before it
/// too. Pages without a name are taken first, then the page that was given back first; of one
/// sequence the last page counts as given back first: a named page outlives those after it.
///
/// For one thread. Memory is taken at the start, but for the names.
class KvPages {
 public:
  using Page = std::int32_t;
  using Tokens = std::span<const std::int32_t, kKvPageTokens>;
  static constexpr Page kNone = -1;  // before a sequence's first page, and where none is found

  /// The named pages of a sequence's first tokens: `last` and those before it.
  struct Chain {
    std::int64_t pages = 0;
    Page last = kNone;
    std::uint64_t naming = 0;  // by which `last` got its name
  };

  explicit KvPages(std::int64_t count);
  KvPages(const KvPages&) = delete;
  KvPages& operator=(const KvPages&) = delete;

  std::int64_t count() const { return static_cast<std::int64_t>(pages_.size()); }
  /// Pages that nobody holds, cached ones included: so many can be taken.
  std::int64_t idle() const { return static_cast<std::int64_t>(idle_.size()); }
  /// Pages that nobody holds, with known content.
  std::int64_t cached() const { return cached_; }
  std::int64_t held() const { return count() - idle(); }
  std::int64_t holders(Page page) const { return of(page).holders; }

  /// An idle page for the caller to write, which holds it. There must be one.
  Page take();
  /// One holder more, who also holds, or comes to hold, the page before it.
  void hold(Page page);
  /// One holder less of each: all pages of a sequence in its order, or one without a name.
  /// `forget`: what is in them is not to be trusted. The last ones lose their names, back to the
  /// first that somebody else holds or that is before another named page.
  void release(std::span<const Page> pages, bool forget = false);

  /// The page with these tokens after the page `before`, or kNone.
  Page find(Page before, Tokens tokens) const;
  /// Says what the page holds. It has a holder and no name; `before` has a name or is kNone; no
  /// page has this name.
  void name(Page page, Page before, Tokens tokens);
  /// The page before a named one, or kNone.
  Page before(Page page) const { return of(page).name->before; }

  /// The chain with the page `next` after it, which has a name.
  Chain extended(const Chain& chain, Page next) const {
    return {chain.pages + 1, next, of(next).naming};
  }
  /// Whether the chain's pages are still what they were when it was looked up.
  bool is_valid(const Chain& chain) const {
    return chain.pages == 0 ||
           (of(chain.last).name != nullptr && of(chain.last).naming == chain.naming);
  }
  /// How many of a valid chain's pages are idle.
  std::int64_t idle_of(const Chain& chain) const;

 private:
  struct Name {
    std::array<std::int32_t, kKvPageTokens> tokens;
    Page before;
    bool operator==(const Name&) const = default;
  };
  static_assert(sizeof(Name) == (kKvPageTokens + 1) * sizeof(std::int32_t), "hashed as bytes");
  struct NameHash {
    std::uint64_t seed;
    std::size_t operator()(const Name& name) const;
  };
  struct State {
    const Name* name = nullptr;  // the key in named_
    std::uint64_t naming = 0;
    std::int64_t holders = 0;
    std::int64_t followers = 0;            // named pages right after this one
    std::list<Page>::iterator place = {};  // in idle_ or held_
  };
  State& of(Page page) { return pages_[static_cast<std::size_t>(page)]; }
  const State& of(Page page) const { return pages_[static_cast<std::size_t>(page)]; }
  void unname(State& state);

  std::vector<State> pages_;
  std::list<Page> idle_;  // the next to be taken first
  std::list<Page> held_;
  std::unordered_map<Name, Page, NameHash> named_;
  std::int64_t cached_ = 0;
  std::uint64_t namings_ = 0;
};

}  // namespace zi
