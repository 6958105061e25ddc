#include "chat/values/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

/// In front of keys that are no texts: no text has this byte.
constexpr char kNoText = '\xff';
constexpr std::size_t kMostKeyBytes = 1 << 16;

}  // namespace

Value Value::undefined(std::string why) {
  return Undefined{std::make_shared<const std::string>(std::move(why))};
}

Value Value::text(std::string text) { return std::make_shared<const Text>(Text{std::move(text)}); }

Value Value::list(std::vector<Value> items) {
  Series made;
  for (const Value& item : items) made.depth = std::max(made.depth, item.depth() + 1);
  made.items = std::move(items);
  return std::make_shared<Series>(std::move(made));
}

const Text* Value::text() const {
  const auto* text = get<std::shared_ptr<const Text>>();
  return text == nullptr ? nullptr : text->get();
}

Series* Value::series() const {
  const auto* sequence = get<std::shared_ptr<Series>>();
  return sequence == nullptr ? nullptr : sequence->get();
}

const Dict* Value::dict() const {
  const auto* dict = get<std::shared_ptr<const Dict>>();
  return dict == nullptr ? nullptr : dict->get();
}

std::optional<std::int64_t> Value::integer() const {
  if (const auto* number = get<std::int64_t>()) return *number;
  if (const auto* flag = get<bool>()) return *flag ? 1 : 0;
  return std::nullopt;
}

int Value::depth() const {
  if (const Series* s = series()) return s->depth;
  if (const Dict* d = dict()) return d->depth();
  if (const auto* loop = get<std::shared_ptr<Loop>>()) return (*loop)->depth;
  if (const auto* function = get<std::shared_ptr<Function>>()) return (*function)->depth;
  return 0;
}

std::string Value::type_name() const {
  static constexpr const char* kNames[] = {"Undefined", "NoneType", "bool",    "int",
                                           "float",     "str",      "",        "dict",
                                           "Namespace", "loop",     "function"};
  const Series* s = series();
  if (s == nullptr) return kNames[data_.index()];
  switch (s->type) {
    case Series::Type::kList:
      return "list";
    case Series::Type::kTuple:
      return "tuple";
    case Series::Type::kRange:
      return "range";
    case Series::Type::kView:
      return "view of a dict";
    case Series::Type::kGenerator:
      return "generator";
  }
  return "sequence";
}

std::string key_of(const Value& key) {
  if (const Text* text = key.text()) return text->text;
  if (key.is_undefined()) return std::string(1, kNoText) + 'u';
  if (key.is_none()) return std::string(1, kNoText) + '0';
  if (const auto number = key.integer()) return fmt::format("{}i{}", kNoText, *number);
  if (const auto* real = key.get<double>()) {
    // 2^63 and beyond are no keys that an integer could have.
    if (*real == std::floor(*real) && std::abs(*real) < 0x1p63) {
      return fmt::format("{}i{}", kNoText, static_cast<std::int64_t>(*real));
    }
    return fmt::format("{}f{}", kNoText, *real);
  }
  const Series* s = key.series();
  if (s != nullptr && s->type == Series::Type::kTuple) {
    std::string all = fmt::format("{}t", kNoText);
    for (const Value& item : s->items) {
      const std::string one = key_of(item);
      all += fmt::format("{}:", one.size()) + one;
      // A tuple of the same tuple twice, and so on, is small, and its key is not.
      if (all.size() > kMostKeyBytes) throw TemplateError("a tuple that large cannot be a key");
    }
    return all;
  }
  throw TemplateError(fmt::format("a {} cannot be a key of a dict", key.type_name()));
}

const Value* Dict::find(std::string_view key) const {
  const auto found = places_.find(key);
  return found == places_.end() ? nullptr : &items_[found->second].second;
}

const Value* Dict::find(const Value& key) const {
  if (const Text* text = key.text()) return find(std::string_view(text->text));
  return find(std::string_view(key_of(key)));
}

void Dict::set(Value key, Value value) {
  depth_ = std::max({depth_, key.depth() + 1, value.depth() + 1});
  std::string name = key_of(key);
  if (name.size() > kMostKeyBytes) {
    throw TemplateError(fmt::format("a key of more than {} bytes is too long", kMostKeyBytes));
  }
  const auto [place, fresh] = places_.emplace(std::move(name), items_.size());
  if (fresh) {
    items_.emplace_back(std::move(key), std::move(value));
  } else {
    items_[place->second].second = std::move(value);
  }
}

}  // namespace zi::chat
