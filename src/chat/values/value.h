#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace zi::chat {

struct Text;
struct Series;
class Dict;
struct Namespace;
struct Loop;
struct Function;

/// What has no value: it prints as nothing, is false and empty, and fails in everything else.
struct Undefined {
  std::shared_ptr<const std::string> why;  // for the message of what fails
};
struct None {};

/// A value of a template, as Python has it. Texts, lists and dicts do not change once they are made
/// (the reference renders in an immutable sandbox), so a copy shares them.
class Value {
 public:
  using Data =
      std::variant<Undefined, None, bool, std::int64_t, double, std::shared_ptr<const Text>,
                   std::shared_ptr<Series>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
                   std::shared_ptr<Loop>, std::shared_ptr<Function>>;

  Value() = default;
  template <typename T>
  requires(!std::is_same_v<std::remove_cvref_t<T>, Value> && std::is_constructible_v<Data, T>)
      Value(T&& data)
      : data_(std::forward<T>(data)) {}
  static Value undefined(std::string why);
  /// Text that no budget pays for: of literals and of what the caller gives.
  static Value text(std::string text);
  static Value list(std::vector<Value> items);

  /// Null where it is something else.
  template <typename T>
  const T* get() const {
    return std::get_if<T>(&data_);
  }
  const Text* text() const;
  Series* series() const;
  const Dict* dict() const;
  const Data& data() const { return data_; }

  bool is_undefined() const { return get<Undefined>() != nullptr; }
  bool is_none() const { return get<None>() != nullptr; }
  /// An integer or a bool, which is one.
  std::optional<std::int64_t> integer() const;
  /// How many lists, dicts, loops and functions that hold a value are inside each other.
  int depth() const;
  /// Python's name of the type: `str`, `dict`.
  std::string type_name() const;

 private:
  Data data_;
};

struct Text {
  std::string text;
  bool safe = false;  // Markup: what is added to it is escaped
};

/// What has items in an order.
struct Series {
  enum class Type {
    kList,
    kTuple,
    kRange,
    kView,       // keys(), values() and items() of a dict
    kGenerator,  // what `map` and its like give: true, without a length, empty once it was read
  };
  Type type = Type::kList;
  std::vector<Value> items;
  std::size_t taken = 0;  // of a generator: items at the front that were read
  int depth = 1;
  std::function<std::vector<Value>()> source;  // of a generator: gives the items when asked first
};

/// In the order in which keys were first set; 1, 1.0 and true are one key.
class Dict {
 public:
  using Item = std::pair<Value, Value>;
  /// Null where there is none. The second form throws TemplateError for a key that Python cannot
  /// hash.
  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;
  void set(Value key, Value value);
  const std::vector<Item>& items() const { return items_; }
  int depth() const { return depth_; }

 private:
  std::vector<Item> items_;
  std::map<std::string, std::size_t, std::less<>> places_;  // by `key_of`
  int depth_ = 1;
};

/// The only value that templates change: `{% set ns.name = value %}`.
struct Namespace {
  std::map<std::string, Value, std::less<>> values;
};

/// `loop` inside a `for`. Items are taken from `pull` one by one, as the reference does: a filter
/// of the loop may look at what its body has changed.
struct Loop {
  std::function<std::optional<Value>()> pull;
  std::function<Value(const Value& items)> recurse;  // empty without `recursive`
  std::int64_t index0 = -1;
  std::int64_t depth0 = 0;
  std::optional<std::int64_t> length;  // where it is known
  int depth = 1;                       // of it and its items
  std::vector<Value> ahead;            // pulled and not yet visited; the next one is at the end
  bool ended = false;
  Value before, current;
  std::optional<Value> changed;
};

/// Arguments of a call.
struct Arguments {
  std::vector<Value> values;
  std::vector<std::pair<std::string, Value>> named;
};

struct Function {
  std::string name;
  int depth = 1;  // of it and what it is bound to
  std::function<Value(Arguments&)> call;
};

/// Equal for keys that Python takes for the same one, and for no others; the text itself for texts.
/// Throws TemplateError for what it cannot hash.
std::string key_of(const Value& key);

}  // namespace zi::chat
