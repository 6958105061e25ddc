#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>

namespace zi {

/// A map that keeps at most `most` values, at least 1: a new one takes the place of the one whose
/// last use is the longest ago. Not for concurrent use.
template <typename Key, typename Value>
class RecentMap {
 public:
  explicit RecentMap(std::size_t most) : most_(most) {}

  /// The value of a key, which is thereby used; null where there is none. Valid until the next add.
  Value* find(const Key& key) {
    const auto found = entries_.find(key);
    if (found == entries_.end()) return nullptr;
    found->second.last_use = ++uses_;
    return &found->second.value;
  }

  /// Gives a key that has no value a new one, and so uses it.
  Value& add(const Key& key) {
    if (entries_.size() >= most_) {
      entries_.erase(std::ranges::min_element(
          entries_, {}, [](const auto& entry) { return entry.second.last_use; }));
    }
    Entry& entry = entries_[key];
    entry.last_use = ++uses_;
    return entry.value;
  }

  std::size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    Value value{};
    std::uint64_t last_use = 0;
  };

  std::size_t most_;
  std::uint64_t uses_ = 0;
  std::map<Key, Entry> entries_;
};

}  // namespace zi
