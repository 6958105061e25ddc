#include "engine/kv_pages.h"

#include <xxhash.h>

#include <algorithm>
#include <random>

#include "zero_infer/error.h"

namespace zi {
namespace {

/// Another one in each process: who chooses prompts cannot choose which names collide.
std::uint64_t random_seed() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

}  // namespace

std::size_t KvPages::NameHash::operator()(const Name& name) const {
  return XXH3_64bits_withSeed(&name, sizeof(name), seed);
}

KvPages::KvPages(std::int64_t count)
    : pages_(static_cast<std::size_t>(count)), named_(0, NameHash{random_seed()}) {
  named_.reserve(pages_.size());
  for (Page page = 0; page < static_cast<Page>(count); ++page) {
    of(page).place = idle_.insert(idle_.end(), page);
  }
}

KvPages::Page KvPages::take() {
  if (idle_.empty()) throw Error("no page of the KV cache is left to take");
  const Page page = idle_.front();
  if (State& state = of(page); state.name != nullptr) {
    unname(state);
    --cached_;
  }
  hold(page);
  return page;
}

void KvPages::hold(Page page) {
  State& state = of(page);
  if (state.holders++ > 0) return;
  if (state.name != nullptr) --cached_;
  held_.splice(held_.end(), idle_, state.place);
}

void KvPages::release(std::span<const Page> pages, bool forget) {
  for (auto page = pages.rbegin(); page != pages.rend(); ++page) {
    State& state = of(*page);
    if (--state.holders > 0) continue;
    if (forget && state.name != nullptr && state.followers == 0) unname(state);
    const bool known = state.name != nullptr;
    idle_.splice(known ? idle_.end() : idle_.begin(), held_, state.place);
    if (known) ++cached_;
  }
}

KvPages::Page KvPages::find(Page before, Tokens tokens) const {
  Name name{.tokens = {}, .before = before};
  std::ranges::copy(tokens, name.tokens.begin());
  const auto found = named_.find(name);
  return found == named_.end() ? kNone : found->second;
}

void KvPages::name(Page page, Page before, Tokens tokens) {
  Name name{.tokens = {}, .before = before};
  std::ranges::copy(tokens, name.tokens.begin());
  State& state = of(page);
  state.name = &named_.emplace(name, page).first->first;
  state.naming = ++namings_;
  if (before != kNone) ++of(before).followers;
}

void KvPages::unname(State& state) {
  if (state.name->before != kNone) --of(state.name->before).followers;
  // By position: erasing by key would compare with the key that is being destroyed.
  named_.erase(named_.find(*state.name));
  state.name = nullptr;
}

std::int64_t KvPages::idle_of(const Chain& chain) const {
  // Whoever holds a page holds those before it: the idle ones are the last.
  std::int64_t idle = 0;
  for (Page page = chain.last; idle < chain.pages && of(page).holders == 0; page = before(page)) {
    ++idle;
  }
  return idle;
}

}  // namespace zi
