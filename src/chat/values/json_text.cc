#include "chat/values/json_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/printable_text.h"
#include "chat/values/operators.h"
#include "chat/values/python_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

void append_unit(std::string& out, std::uint32_t unit) { out += fmt::format("\\u{:04x}", unit); }

void append_quoted(std::string& out, std::string_view text, bool ascii) {
  out += '"';
  for (std::size_t at = 0; at < text.size();) {
    const char c = text[at];
    constexpr std::string_view kEscaped = "\"\\\n\r\t\b\f";
    constexpr std::string_view kLetters = "\"\\nrtbf";
    if (const std::size_t i = kEscaped.find(c); i != std::string_view::npos) {
      out += '\\';
      out += kLetters[i];
      ++at;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      append_unit(out, static_cast<unsigned char>(c));
      ++at;
    } else if (static_cast<unsigned char>(c) < (ascii ? 0x7f : 0x80)) {  // as Python does it
      out += c;
      ++at;
    } else {
      const std::string_view character = text.substr(at, offset_of_point(text.substr(at), 1));
      const auto point = static_cast<std::uint32_t>(first_point(character));
      if (!ascii) {
        out += character;
      } else if (point < 0x10000) {
        append_unit(out, point);
      } else {
        append_unit(out, 0xd800 + ((point - 0x10000) >> 10));
        append_unit(out, 0xdc00 + ((point - 0x10000) & 0x3ff));
      }
      at += character.size();
    }
  }
  out += '"';
}

std::string number_text(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return repr_of(value);
}

class Writer {
 public:
  Writer(const JsonStyle& style, Budget& budget) : style_(style), budget_(budget) {}

  std::string run(const Value& value) {
    write(value);
    return std::move(out_);
  }

 private:
  void write(const Value& value) {
    budget_.step();
    budget_.check(out_.size());
    if (value.is_none()) {
      out_ += "null";
    } else if (const auto* flag = value.get<bool>()) {
      out_ += *flag ? "true" : "false";
    } else if (const auto* number = value.get<std::int64_t>()) {
      out_ += fmt::to_string(*number);
    } else if (const auto* real = value.get<double>()) {
      out_ += number_text(*real);
    } else if (const Text* text = value.text()) {
      budget_.work(text->text.size());
      append_quoted(out_, text->text, style_.ascii);
    } else if (const Dict* dict = value.dict()) {
      write(*dict);
    } else if (const Series* s = value.series();
               s != nullptr &&
               (s->type == Series::Type::kList || s->type == Series::Type::kTuple)) {
      write(*s);
    } else {
      if (value.is_undefined()) {
        const auto& why = value.get<Undefined>()->why;
        throw TemplateError(
            fmt::format("tojson of what has no value: {}", why ? *why : "a value is undefined"));
      }
      fail_type("tojson does not work for", value);
    }
  }

  void line() {
    if (!style_.indented) return;
    out_ += '\n';
    for (int i = 0; i < level_; ++i) out_ += style_.indent;
  }

  void write(const Series& s) {
    if (s.items.empty()) {
      out_ += "[]";
      return;
    }
    out_ += '[';
    ++level_;
    for (std::size_t i = 0; i < s.items.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      line();
      write(s.items[i]);
    }
    --level_;
    line();
    out_ += ']';
  }

  void write(const Dict& dict) {
    if (dict.items().empty()) {
      out_ += "{}";
      return;
    }
    std::vector<const Dict::Item*> items;
    for (const Dict::Item& item : dict.items()) items.push_back(&item);
    if (style_.sorted) {
      std::ranges::stable_sort(items, [&](const Dict::Item* a, const Dict::Item* b) {
        return less(a->first, b->first, budget_);
      });
    }
    out_ += '{';
    ++level_;
    bool first = true;
    for (const Dict::Item* item : items) {
      if (!first) out_ += style_.item_separator;
      first = false;
      line();
      append_quoted(out_, key(item->first), style_.ascii);
      out_ += style_.key_separator;
      write(item->second);
    }
    --level_;
    line();
    out_ += '}';
  }

  static std::string key(const Value& value) {
    if (const Text* text = value.text()) return text->text;
    if (value.is_none()) return "null";
    if (const auto* flag = value.get<bool>()) return *flag ? "true" : "false";
    if (const auto* number = value.get<std::int64_t>()) return fmt::to_string(*number);
    if (const auto* real = value.get<double>()) return number_text(*real);
    fail_type("tojson of a dict with a key that is", value);
  }

  const JsonStyle& style_;
  Budget& budget_;
  std::string out_;
  int level_ = 0;
};

/// Builds values while the library reads: its own objects would lose their order.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(int most_depth) : most_depth_(most_depth) {}

  bool null() override { return put(None{}); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(std::int64_t{value}); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<number_unsigned_t>(std::numeric_limits<std::int64_t>::max())) {
      throw TemplateError(fmt::format("the integer {} is beyond 2^63 - 1", value));
    }
    return put(static_cast<std::int64_t>(value));
  }
  bool number_float(number_float_t value, const string_t& written) override {
    if (written.find_first_of(".eE") == std::string::npos) {
      throw TemplateError(fmt::format("the integer {} is beyond 64 bits", in_quotes(written)));
    }
    return put(value);
  }
  bool string(string_t& value) override { return put(Value::text(std::move(value))); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(true); }
  bool start_array(std::size_t) override { return open(false); }
  bool key(string_t& value) override {
    open_.back().key = std::move(value);
    return true;
  }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::detail::exception& error) override {
    throw TemplateError(fmt::format("not JSON: {}", in_quotes(error.what())));
  }

  Value result;

 private:
  struct Open {
    bool is_object = false;
    std::string key;
    Dict dict;
    std::vector<Value> items;
  };

  bool open(bool is_object) {
    if (static_cast<int>(open_.size()) >= most_depth_) {
      throw TemplateError(fmt::format("JSON nested deeper than {}", most_depth_));
    }
    open_.emplace_back();
    open_.back().is_object = is_object;
    return true;
  }
  bool close() {
    Open done = std::move(open_.back());
    open_.pop_back();
    if (done.is_object) return put(std::make_shared<const Dict>(std::move(done.dict)));
    return put(Value::list(std::move(done.items)));
  }
  bool put(Value value) {
    if (open_.empty()) {
      result = std::move(value);
    } else if (open_.back().is_object) {
      open_.back().dict.set(Value::text(std::move(open_.back().key)), std::move(value));
    } else {
      open_.back().items.push_back(std::move(value));
    }
    return true;
  }

  int most_depth_;
  std::vector<Open> open_;
};

}  // namespace

std::string to_json(const Value& value, const JsonStyle& style, Budget& budget) {
  return Writer(style, budget).run(value);
}

Value parse_json(std::string_view text, int most_depth) {
  Builder builder(most_depth);
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  return std::move(builder.result);
}

}  // namespace zi::chat
