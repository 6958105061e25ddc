#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chat/budget.h"
#include "chat/value.h"

namespace zi::chat {

/// The names that `set`, `for`, macros and the like give values to, inside the names around them.
/// Names are those of the template's syntax, which lives longer.
struct Scope {
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<std::string_view, Value>> names;
  bool captured = false;  // by a macro: whoever runs the template empties it in the end

  void set(std::string_view name, Value value) {
    for (auto& [known, old] : names) {
      if (known == name) {
        old = std::move(value);
        return;
      }
    }
    names.emplace_back(name, std::move(value));
  }
  /// Null where neither this nor one around it has the name.
  const Value* find(std::string_view name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->parent.get()) {
      for (const auto& [known, value] : scope->names) {
        if (known == name) return &value;
      }
    }
    return nullptr;
  }
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
