#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "chat/values/value.h"

namespace zi::chat {

/// What one rendering may take. A template comes with the model: one that loops for ever, or wants
/// all memory, must end with an error. Values made here give their bytes back when they go, so a
/// budget outlives them.
class Budget {
 public:
  static constexpr std::int64_t kMostSteps = 5'000'000;              // about a second
  static constexpr std::size_t kMostBytes = std::size_t{256} << 20;  // held at a time
  static constexpr std::int64_t kBytesAStep = 128;                   // of copying and comparing
  static constexpr int kMostDepth = 100;                             // of values inside each other
  static constexpr int kMostNesting = 700;  // of expressions being evaluated

  Budget() = default;
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

  /// Each throws TemplateError when it is used up.
  void step(std::int64_t count = 1) {
    steps_ -= count;
    if (steps_ < 0) fail_steps();
  }
  /// Before work on so many bytes: texts that are copied, searched or measured.
  void work(std::size_t bytes) { step(1 + static_cast<std::int64_t>(bytes) / kBytesAStep); }
  /// Before so many bytes are made.
  void check(std::size_t bytes) const {
    if (bytes > kMostBytes || held_ > kMostBytes - bytes) fail_bytes();
  }

  /// Bytes that are held elsewhere, until they are given back.
  void take(std::size_t bytes) {
    work(bytes);
    check(bytes);
    held_ += bytes;
  }
  void give(std::size_t bytes) { held_ -= bytes; }

  Value text(std::string text, bool safe = false);
  Value series(Series::Type type, std::vector<Value> items);
  Value list(std::vector<Value> items) { return series(Series::Type::kList, std::move(items)); }
  Value tuple(std::vector<Value> items) { return series(Series::Type::kTuple, std::move(items)); }
  Value generator(std::vector<Value> items) {
    return series(Series::Type::kGenerator, std::move(items));
  }
  /// A generator whose items are made, or fail, when they are asked for, from `from` and
  /// `arguments`, which it holds.
  Value generator(const Value& from, const Arguments& arguments,
                  std::function<std::vector<Value>()> source);
  Value dict(Dict dict);
  /// `bound` is the value that the function holds, if it holds one.
  Value function(std::string name, std::function<Value(Arguments&)> call, const Value& bound = {});
  /// Before a dict is searched for a key: long ones are compared with those that are there.
  void search(std::size_t key_bytes) {
    if (key_bytes > kShortKeyBytes) work(kKeysCompared * key_bytes);
  }
  void search(const Value& key) {
    if (const Text* text = key.text()) search(text->text.size());
  }
  /// Throws TemplateError for values that are too deep inside each other.
  static void check_depth(int depth);
  /// A value of the other kinds.
  template <typename T>
  std::shared_ptr<T> hold(T value, std::size_t bytes) {
    work(bytes);
    check(bytes);
    auto* const made = new T(std::move(value));
    held_ += bytes;
    return std::shared_ptr<T>(made, [this, bytes](T* gone) {
      delete gone;
      held_ -= bytes;
    });
  }

  /// One more expression or statement inside the others, for as long as it lives.
  class Nested {
   public:
    explicit Nested(Budget& budget) : budget_(budget) {
      budget.step();
      if (budget.nesting_ >= kMostNesting) budget.fail_nesting();
      ++budget.nesting_;
    }
    ~Nested() { --budget_.nesting_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    Budget& budget_;
  };

 private:
  static constexpr std::size_t kShortKeyBytes = 256;
  static constexpr std::size_t kKeysCompared = 16;

  [[noreturn]] static void fail_steps();
  [[noreturn]] static void fail_bytes();
  [[noreturn]] static void fail_nesting();

  std::int64_t steps_ = kMostSteps;
  std::size_t held_ = 0;
  int nesting_ = 0;
};

}  // namespace zi::chat
