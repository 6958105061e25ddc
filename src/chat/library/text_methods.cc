#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <unordered_map>

#include "base/printable_text.h"
#include "chat/library/attributes.h"
#include "chat/library/parameters.h"
#include "chat/values/operators.h"
#include "chat/values/percent_format.h"
#include "chat/values/python_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

using Method = Value (*)(const std::string& text, const Arguments& arguments, Budget& budget);

/// The longest text that is searched for, or stripped, character by character.
constexpr std::size_t kMostPattern = 4096;

/// Before a search for `pattern` in `text`, which may look at each place for as long.
void search_cost(std::string_view text, std::string_view pattern, Budget& budget) {
  budget.work(text.size() * std::min<std::size_t>(pattern.size() + 1, 1u << 16));
}

Value texts(const std::vector<std::string_view>& parts, Budget& budget) {
  std::vector<Value> items;
  budget.check(parts.size() * 2 * sizeof(Value));
  for (const std::string_view part : parts) items.push_back(budget.text(std::string(part)));
  return budget.list(std::move(items));
}

template <Side kSide>
Value strip_method(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("strip", arguments, {"chars"});
  const auto characters = p.text(0);
  if (characters && characters->size() > kMostPattern) {
    throw TemplateError("`strip` of so many different characters is not supported");
  }
  if (characters) search_cost(text, *characters, budget);
  return budget.text(std::string(strip(text, kSide, characters)));
}

template <bool kFromRight>
Value split_method(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("split", arguments, {"sep", "maxsplit"});
  const auto separator = p.text(0);
  if (separator && separator->empty()) throw TemplateError("`split` at an empty text");
  if (separator) search_cost(text, *separator, budget);
  budget.work(text.size());
  return texts(split(text, separator, p.integer(1, -1), kFromRight), budget);
}

Value splitlines(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("splitlines", arguments, {"keepends"});
  budget.work(text.size());
  return texts(split_lines(text, p.flag(0, false)), budget);
}

template <bool kFromRight>
Value partition(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("partition", arguments, {"sep"}, 1);
  const std::string_view separator = p.text(0).value_or("");
  if (separator.empty()) throw TemplateError("`partition` at an empty text");
  search_cost(text, separator, budget);
  const std::vector<std::string_view> parts = split(text, separator, 1, kFromRight);
  std::array<std::string_view, 3> three = {text, "", ""};
  if (parts.size() == 2) {
    three = {parts[0], separator, parts[1]};
  } else if (kFromRight) {
    three = {"", "", text};
  }
  std::vector<Value> items;
  for (const std::string_view part : three) items.push_back(budget.text(std::string(part)));
  return budget.tuple(std::move(items));
}

/// text[start:end] of find, count, startswith and the like.
std::string_view section(const std::string& text, const Parameters& p, std::size_t first,
                         std::size_t& offset, Budget& budget) {
  offset = 0;
  if (p[first] == nullptr && p[first + 1] == nullptr) return text;
  budget.work(text.size());
  const auto length = static_cast<std::int64_t>(count_points(text));
  const auto bound = [&](std::size_t i, std::int64_t absent) {
    const std::int64_t at = p.integer(i, absent);
    return std::clamp<std::int64_t>(at < 0 ? at + length : at, 0, length);
  };
  const std::int64_t begin = bound(first, 0);
  const std::int64_t end = std::max(begin, bound(first + 1, length));
  offset = offset_of_point(text, static_cast<std::size_t>(begin));
  return std::string_view(text).substr(
      offset, offset_of_point(text, static_cast<std::size_t>(end)) - offset);
}

template <bool kFromRight, bool kMustBe>
Value find(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("find", arguments, {"sub", "start", "end"}, 1);
  const std::string_view wanted = p.text(0).value_or("");
  std::size_t offset = 0;
  const std::string_view part = section(text, p, 1, offset, budget);
  search_cost(part, wanted, budget);
  const std::size_t at = kFromRight ? part.rfind(wanted) : part.find(wanted);
  if (at != std::string_view::npos) {
    return static_cast<std::int64_t>(count_points(std::string_view(text).substr(0, offset + at)));
  }
  if (kMustBe) throw TemplateError("`index` of a text that is not there");
  return std::int64_t{-1};
}

Value count(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("count", arguments, {"sub", "start", "end"}, 1);
  const std::string_view wanted = p.text(0).value_or("");
  std::size_t offset = 0;
  const std::string_view part = section(text, p, 1, offset, budget);
  search_cost(part, wanted, budget);
  if (wanted.empty()) return static_cast<std::int64_t>(count_points(part) + 1);
  std::int64_t found = 0;
  for (std::size_t at = 0; (at = part.find(wanted, at)) != std::string_view::npos;) {
    ++found;
    at += wanted.size();
  }
  return found;
}

template <bool kEnd>
Value starts(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p(kEnd ? "endswith" : "startswith", arguments, {"prefix", "start", "end"}, 1);
  std::size_t offset = 0;
  const std::string_view part = section(text, p, 1, offset, budget);
  const auto fits = [&](const Value& value) {
    if (value.text() == nullptr) fail_type("`startswith` and `endswith` need a text, not", value);
    const std::string& wanted = value.text()->text;
    budget.work(wanted.size());
    return kEnd ? part.ends_with(wanted) : part.starts_with(wanted);
  };
  const Series* const several = p.value(0).series();
  if (several == nullptr || several->type != Series::Type::kTuple) return fits(p.value(0));
  return std::ranges::any_of(several->items, fits);
}

template <bool kEnd>
Value without(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("removeprefix", arguments, {"prefix"}, 1);
  const std::string_view gone = p.text(0).value_or("");
  std::string_view rest = text;
  if (kEnd && rest.ends_with(gone)) rest.remove_suffix(gone.size());
  if (!kEnd && rest.starts_with(gone)) rest.remove_prefix(gone.size());
  return budget.text(std::string(rest));
}

Value replace_method(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("replace", arguments, {"old", "new", "count"}, 2);
  const std::string_view from = p.text(0).value_or("");
  const std::string_view to = p.text(1).value_or("");
  const std::int64_t most = p.integer(2, -1);
  search_cost(text, from, budget);
  const std::size_t bytes = replaced_size(text, from, to, most);
  budget.work(bytes);
  budget.check(bytes);
  return budget.text(replace(text, from, to, most));
}

Value join(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("join", arguments, {"iterable"}, 1);
  std::string out;
  bool first = true;
  for (const Value& item : items_of(p.value(0), budget)) {
    if (item.text() == nullptr) fail_type("`join` needs texts, not", item);
    if (!first) out += text;
    first = false;
    out += item.text()->text;
    budget.work(text.size() + item.text()->text.size());
    budget.check(out.size());
  }
  return budget.text(std::move(out));
}

template <std::string (*kChange)(std::string_view)>
Value change(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("a change of case", arguments, {});
  budget.work(text.size() * 16);
  budget.check(text.size() * 8);
  return budget.text(kChange(text));
}

template <bool (*kIs)(std::string_view)>
Value is_all(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("a test of case", arguments, {});
  budget.work(text.size() * 16);
  budget.check(text.size() * sizeof(std::string_view));
  return kIs(text);
}

template <bool (*kIs)(char32_t)>
Value each(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("a test of characters", arguments, {});
  budget.work(text.size() * 16);
  budget.check(text.size() * sizeof(std::string_view));
  return !text.empty() && std::ranges::all_of(points(text), [](std::string_view character) {
    return kIs(first_point(character));
  });
}

template <char kAlign>
Value padded(const std::string& text, const Arguments& arguments, Budget& budget) {
  const Parameters p("ljust, rjust or center", arguments, {"width", "fillchar"}, 1);
  const std::string fill(p.text(1).value_or(" "));
  if (count_points(fill) != 1) throw TemplateError("the fill must be one character");
  const std::int64_t wanted = p.integer(0, 0);
  budget.work(text.size());
  const auto length = static_cast<std::int64_t>(count_points(text));
  if (wanted <= length) return budget.text(text);
  const auto missing = static_cast<std::size_t>(wanted - length);
  if (missing > Budget::kMostBytes / 4) budget.check(Budget::kMostBytes + 1);
  budget.work(missing * 4);
  // As str.center does it: of an odd rest, the left side has more where the width is odd.
  const std::size_t left = kAlign == '<' ? 0
                           : kAlign == '>'
                               ? missing
                               : missing / 2 + (missing & static_cast<std::size_t>(wanted) & 1);
  std::string out;
  for (std::size_t i = 0; i < left; ++i) out += fill;
  out += text;
  for (std::size_t i = left; i < missing; ++i) out += fill;
  return budget.text(std::move(out));
}

Value format_method(const std::string& text, const Arguments& arguments, Budget& budget) {
  return brace_format(Text{text}, arguments, budget);
}

const std::unordered_map<std::string_view, Method> kMethods = {
    {"capitalize", change<capitalize>},
    {"center", padded<'^'>},
    {"count", count},
    {"endswith", starts<true>},
    {"find", find<false, false>},
    {"format", format_method},
    {"index", find<false, true>},
    {"isalnum", each<is_alnum>},
    {"isalpha", each<is_alpha>},
    {"isdigit", each<is_digit>},
    {"islower", is_all<is_lower>},
    {"isspace", each<is_space>},
    {"isupper", is_all<is_upper>},
    {"join", join},
    {"ljust", padded<'<'>},
    {"lower", change<lower>},
    {"lstrip", strip_method<Side::kLeft>},
    {"partition", partition<false>},
    {"removeprefix", without<false>},
    {"removesuffix", without<true>},
    {"replace", replace_method},
    {"rfind", find<true, false>},
    {"rindex", find<true, true>},
    {"rjust", padded<'>'>},
    {"rpartition", partition<true>},
    {"rsplit", split_method<true>},
    {"rstrip", strip_method<Side::kRight>},
    {"split", split_method<false>},
    {"splitlines", splitlines},
    {"startswith", starts<false>},
    {"strip", strip_method<Side::kBoth>},
    {"title", change<title>},
    {"upper", change<upper>},
};

/// What Python has beyond these.
constexpr std::array<std::string_view, 15> kOthers = {
    "casefold",  "encode",       "expandtabs", "format_map",  "isascii",
    "isdecimal", "isidentifier", "isnumeric",  "isprintable", "istitle",
    "maketrans", "swapcase",     "translate",  "zfill",       "__len__"};

}  // namespace

std::optional<Value> text_method(const Value& text, std::string_view name, Budget& budget) {
  const auto found = kMethods.find(name);
  if (found == kMethods.end()) {
    if (std::ranges::find(kOthers, name) == kOthers.end()) return std::nullopt;
    throw TemplateError(fmt::format("the method {} of a text is not supported", in_quotes(name)));
  }
  if (text.text()->safe) {
    throw TemplateError(fmt::format(
        "the method {} of a text that is marked as safe is not supported", in_quotes(name)));
  }
  return budget.function(std::string(name),
                         [text, method = found->second, &budget](Arguments& arguments) {
                           return method(text.text()->text, arguments, budget);
                         });
}

}  // namespace zi::chat
