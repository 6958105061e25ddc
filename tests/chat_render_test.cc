#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "chat/jinja/interpreter.h"
#include "chat/jinja/parser.h"
#include "chat/values/json_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr std::time_t kNow = 1'753'488'000;  // 26 July 2025, 00:00 UTC

std::string rendered(std::string_view source, const Dict& variables = {}) {
  return render(parse_template(source), variables, kNow);
}

/// `line: message`.
std::string refusal(std::string_view source) {
  try {
    return "gives " + rendered(source);
  } catch (const TemplateError& error) {
    return std::to_string(error.line()) + ": " + error.what();
  }
}

/// tests/chat_reference_test.py writes the file with Jinja2, and compares it where that is there.
TEST(ChatTemplates, RenderAsJinjaDoes) {
  ::setenv("TZ", "UTC", 1);
  std::ostringstream text;
  text << std::ifstream(ZI_TEST_DATA "/chat/expressions.json").rdbuf();
  const Value file = parse_json(text.str(), 64);
  const Dict& variables = *file.dict()->find("variables")->dict();
  const auto& cases = file.dict()->find("cases")->series()->items;
  ASSERT_GT(cases.size(), 100u);
  for (const Value& one : cases) {
    const std::string& source = one.dict()->find("source")->text()->text;
    SCOPED_TRACE(source);
    const Value* const wanted = one.dict()->find("text");
    try {
      const std::string given = rendered(source, variables);
      if (wanted == nullptr) {
        ADD_FAILURE() << "must be refused, but gives " << given;
      } else {
        EXPECT_EQ(given, wanted->text()->text);
      }
    } catch (const RaisedByTemplate& raised) {
      const Value* const message = one.dict()->find("raised");
      ASSERT_NE(message, nullptr) << raised.what();
      EXPECT_EQ(raised.what(), message->text()->text);
    } catch (const TemplateError& error) {
      EXPECT_NE(one.dict()->find("error"), nullptr) << error.line() << ": " << error.what();
    }
  }
}

TEST(ChatTemplates, NameWhatIsNotSupportedWithItsLine) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"a\n{% extends 'x' %}", "2: the tag `extends` is not supported"},
      {"\n\n{% include 'x' %}", "3: the tag `include` is not supported"},
      {"{% block a %}{% endblock %}", "1: the tag `block` is not supported"},
      {"{% import 'x' as y %}", "1: the tag `import` is not supported"},
      {"{% autoescape true %}{% endautoescape %}", "1: the tag `autoescape` is not supported"},
      {"\n{% nosuch %}", "2: there is no tag `nosuch`"},
      {"\n{{ 'a' | truncate(3) }}", "2: unsupported filter `truncate`"},
      {"\n{{ 'a' | nosuch }}", "2: there is no filter `nosuch`"},
      {"\n{{ 'a' is nosuch }}", "2: there is no test `nosuch`"},
      {"{% if true %}\n{{ 'a' | urlize }}{% endif %}", "2: unsupported filter `urlize`"},
      {"a\n{{ 'a'.encode('utf-8') }}", "2: the method `encode` of a text is not supported"},
      {"\n{{ cycler('a') }}", "2: `cycler` is not supported"},
      {"\n{{ lipsum() }}", "2: `lipsum` is not supported"},
      {"\n{{ (5).bit_length() }}", "2: `bit_length` of a int is not supported"},
      {"{{ 9223372036854775807 + 1 }}", "1: integers beyond 64 bits are not supported"},
      {"\n{{ 99999999999999999999 }}", "2: the number `99999999999999999999` is too large"},
      {"{{ '{0.x}'.format(1) }}", "1: the field `0.x` of a format is not supported"},
      {"{{ ('a' | safe).strip() }}",
       "1: the method `strip` of a text that is marked as safe is not supported"},
      {"\n{{ missing.x }}", "2: `missing` is undefined"},
      {"\n\n{{ {}.a.b }}", "3: a value of type dict has no `a`"},
      {"{{ self }}", "1: `self` is not supported"},
      {"\n{{ strftime_now('%H %f') }}", "2: `%f` of `strftime_now` is not supported"},
      {"{{ '１２' | int }}", "1: numbers with `_` or digits beyond ASCII are not supported"},
      {"{{ '1_0' | float }}", "1: numbers with `_` or digits beyond ASCII are not supported"},
      {"{% for i in [1] %}\n{% set loop = 5 %}{% endfor %}",
       "2: `loop` cannot be assigned to inside a `for`"},
      {"{{ [].append(1) }}", "1: `append` would change a list, which a template may not do"},
  };
  for (const auto& [source, message] : cases) EXPECT_EQ(refusal(source), message) << source;
}

TEST(ChatTemplates, TellTheLineOfWhatFailsInAMacro) {
  EXPECT_EQ(refusal("{% macro m(x) %}\n{{ x.y.z }}\n{% endmacro %}\n{{ m({}) }}"),
            "2: a value of type dict has no `y`");
  EXPECT_EQ(refusal("{% macro m(x) %}\n{{ x }}\n{% endmacro %}\n{{ m(1) + 1 }}").substr(0, 2),
            "4:");
}

TEST(ChatTemplates, RaiseTheirMessageWordForWord) {
  try {
    rendered("\n{{ raise_exception('Roles \"must\" alternate: ' ~ 1) }}");
    FAIL();
  } catch (const RaisedByTemplate& raised) {
    EXPECT_STREQ(raised.what(), "Roles \"must\" alternate: 1");
    EXPECT_EQ(raised.line(), 2);
  }
}

TEST(ChatTemplates, LeaveNothingBehindWhenValuesReferToEachOther) {
  // The address sanitizer would find what is not freed.
  EXPECT_EQ(rendered("{% set a = namespace() %}{% set a.b = namespace(a=a) %}{% set a.self = [a] %}"
                     "{% macro m() %}{{ a.m }}{% endmacro %}{% set a.m = m %}"
                     "{% for x in [1] recursive %}{% set a.loop = loop %}{% set a.f = loop.cycle %}"
                     "{% macro n() %}{% endmacro %}{% set a.n = n %}{% endfor %}done"),
            "done");
}

TEST(ChatTemplates, KeepTheOrderOfKeys) {
  const Value value = parse_json(R"({"z": 1, "a": {"y": 2, "b": 3}, "z": 4})", 8);
  Dict variables;
  variables.set(Value::text("x"), value);
  EXPECT_EQ(rendered("{{ x | tojson }}", variables), R"({"z": 4, "a": {"y": 2, "b": 3}})");
}

}  // namespace
}  // namespace zi::chat
