#include "chat/library/tests.h"

#include <fmt/format.h>

#include <unordered_map>

#include "base/printable_text.h"
#include "chat/library/parameters.h"
#include "chat/values/arithmetic.h"
#include "chat/values/operators.h"
#include "chat/values/python_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

/// A test without arguments.
template <bool (*kIs)(const Value&)>
bool plain(const Value& value, const Arguments& arguments, Budget&) {
  const Parameters p("a test", arguments, {});
  return kIs(value);
}

bool is_true(const Value& value) { return value.get<bool>() != nullptr && *value.get<bool>(); }
bool is_false(const Value& value) { return value.get<bool>() != nullptr && !*value.get<bool>(); }
bool is_boolean(const Value& value) { return value.get<bool>() != nullptr; }
bool is_integer(const Value& value) { return value.get<std::int64_t>() != nullptr; }
bool is_float(const Value& value) { return value.get<double>() != nullptr; }
bool is_defined(const Value& value) { return !value.is_undefined(); }
bool is_undefined(const Value& value) { return value.is_undefined(); }
bool is_none(const Value& value) { return value.is_none(); }
bool is_string(const Value& value) { return value.text() != nullptr; }
bool is_mapping(const Value& value) { return value.dict() != nullptr; }
bool is_loop(const Value& value) { return value.get<std::shared_ptr<Loop>>() != nullptr; }
bool is_callable(const Value& value) {
  // The reference's undefined value can be called, and fails then.
  return value.get<std::shared_ptr<Function>>() != nullptr || is_loop(value) ||
         value.is_undefined();
}
/// What has a length and items by number or key.
bool is_sequence(const Value& value) {
  const Series* const s = value.series();
  if (s != nullptr) {
    return s->type != Series::Type::kView && s->type != Series::Type::kGenerator;
  }
  return value.text() != nullptr || value.dict() != nullptr || value.is_undefined();
}
bool is_iterable(const Value& value) {
  return value.series() != nullptr || value.text() != nullptr || value.dict() != nullptr ||
         value.is_undefined() || is_loop(value);
}
bool is_escaped(const Value& value) { return value.text() != nullptr && value.text()->safe; }

template <bool (*kIs)(std::string_view)>
bool is_case(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("a test of case", arguments, {});
  const std::string text = to_text(value, budget);
  budget.work(text.size() * 16);
  budget.check(text.size() * sizeof(std::string_view));
  return kIs(text);
}

Value remainder(const Value& value, const Value& divisor, Budget& budget) {
  return binary("%", value, divisor, budget);
}
bool is_odd(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("odd", arguments, {});
  return equal(remainder(value, std::int64_t{2}, budget), std::int64_t{1}, budget);
}
bool is_even(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("even", arguments, {});
  return equal(remainder(value, std::int64_t{2}, budget), std::int64_t{0}, budget);
}
bool is_divisible(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("divisibleby", arguments, {"num"}, 1);
  return equal(remainder(value, p.value(0), budget), std::int64_t{0}, budget);
}

/// The same object: known for what Python has once.
bool is_same(const Value& value, const Arguments& arguments, Budget&) {
  const Parameters p("sameas", arguments, {"other"}, 1);
  const Value& other = p.value(0);
  if (value.data().index() != other.data().index()) return false;
  if (value.is_none()) return true;
  if (const auto* flag = value.get<bool>()) return *flag == *other.get<bool>();
  if (const Dict* dict = value.dict()) return dict == other.dict();
  if (const Series* s = value.series()) return s == other.series();
  fail_type("`sameas` is not supported for", value);
}

bool is_in(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("in", arguments, {"seq"}, 1);
  return contains(p.value(0), value, budget);
}

enum class Order { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual };
template <Order kOrder>
bool ordered(const Value& value, const Arguments& arguments, Budget& budget) {
  static constexpr const char* kSymbols[] = {"==", "!=", "<", "<=", ">", ">="};
  const Parameters p("a comparison", arguments, {"other"}, 1);
  return compare(kSymbols[static_cast<int>(kOrder)], value, p.value(0), budget);
}

const std::unordered_map<std::string_view, Test> kTests = {
    {"!=", ordered<Order::kNotEqual>},
    {"<", ordered<Order::kLess>},
    {"<=", ordered<Order::kLessEqual>},
    {"==", ordered<Order::kEqual>},
    {">", ordered<Order::kGreater>},
    {">=", ordered<Order::kGreaterEqual>},
    {"boolean", plain<is_boolean>},
    {"callable", plain<is_callable>},
    {"defined", plain<is_defined>},
    {"divisibleby", is_divisible},
    {"eq", ordered<Order::kEqual>},
    {"equalto", ordered<Order::kEqual>},
    {"escaped", plain<is_escaped>},
    {"even", is_even},
    {"false", plain<is_false>},
    {"float", plain<is_float>},
    {"ge", ordered<Order::kGreaterEqual>},
    {"greaterthan", ordered<Order::kGreater>},
    {"gt", ordered<Order::kGreater>},
    {"in", is_in},
    {"integer", plain<is_integer>},
    {"iterable", plain<is_iterable>},
    {"le", ordered<Order::kLessEqual>},
    {"lessthan", ordered<Order::kLess>},
    {"lower", is_case<is_lower>},
    {"lt", ordered<Order::kLess>},
    {"mapping", plain<is_mapping>},
    {"ne", ordered<Order::kNotEqual>},
    {"none", plain<is_none>},
    {"number", plain<is_number>},
    {"odd", is_odd},
    {"sameas", is_same},
    {"sequence", plain<is_sequence>},
    {"string", plain<is_string>},
    {"true", plain<is_true>},
    {"undefined", plain<is_undefined>},
    {"upper", is_case<is_upper>},
};

}  // namespace

Test find_test(std::string_view name) {
  const auto found = kTests.find(name);
  return found == kTests.end() ? nullptr : found->second;
}

std::string unknown_test(std::string_view name) {
  return fmt::format("there is no test {}", in_quotes(name));
}

}  // namespace zi::chat
