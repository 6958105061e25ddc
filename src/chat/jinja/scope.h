#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "chat/values/budget.h"
#include "chat/values/value.h"

namespace zi::chat {

/// The names that `set`, `for`, macros and the like give values to, inside the names around them.
/// Names are those of the template's syntax, which lives longer.
class Scope {
 public:
  explicit Scope(std::shared_ptr<Scope> around)
      : parent(std::move(around)), level_(parent == nullptr ? 0 : parent->level_ + 1) {}

  void set(std::string_view name, Value value) {
    if (Value* const known = here(name)) {
      *known = std::move(value);
      return;
    }
    names_.emplace_back(name, std::move(value));
    if (names_.size() <= kMostUnsorted) return;
    if (places_.empty()) {
      for (std::size_t i = 0; i < names_.size(); ++i) places_.emplace(names_[i].first, i);
    } else {
      places_.emplace(name, names_.size() - 1);
    }
  }
  /// Null where neither this nor one around it has the name.
  const Value* find(std::string_view name) {
    for (Scope* scope = this; scope != nullptr; scope = scope->parent.get()) {
      if (const Value* const found = scope->here(name)) return found;
    }
    return nullptr;
  }
  /// How many are around this one.
  int level() const { return level_; }
  void clear() {
    places_.clear();
    names_.clear();
  }

  std::shared_ptr<Scope> parent;
  bool captured = false;  // by a macro: whoever runs the template empties it in the end

 private:
  static constexpr std::size_t kMostUnsorted = 8;  // names that are searched one by one

  Value* here(std::string_view name) {
    if (!places_.empty()) {
      const auto found = places_.find(name);
      return found == places_.end() ? nullptr : &names_[found->second].second;
    }
    for (auto& [known, value] : names_) {
      if (known == name) return &value;
    }
    return nullptr;
  }

  std::vector<std::pair<std::string_view, Value>> names_;
  std::unordered_map<std::string_view, std::size_t> places_;  // empty where there are few names
  int level_ = 0;
};

/// Text as it is rendered; its bytes belong to the budget.
class Output {
 public:
  explicit Output(Budget& budget) : budget_(budget) {}
  ~Output() { budget_.give(text_.size()); }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  void add(std::string_view text) {
    budget_.take(text.size());
    text_ += text;
  }
  std::string take() {
    budget_.give(text_.size());
    return std::exchange(text_, {});
  }

 private:
  Budget& budget_;
  std::string text_;
};

}  // namespace zi::chat
