// Templates come with a model: whatever one says, it ends soon, in bounded memory, with one line.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <string>

#include "chat/jinja/interpreter.h"
#include "chat/jinja/parser.h"
#include "chat/values/json_text.h"
#include "chat/values/template_error.h"
#include "sanitized.h"

namespace zi::chat {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

constexpr double kMostSeconds = test::kSanitized ? 30 : 5;  // of processor time; about 1 or 2

double cpu_seconds() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  return static_cast<double>(used.ru_utime.tv_sec) +
         1e-6 * static_cast<double>(used.ru_utime.tv_usec);
}

std::string refusal(const std::string& source) {
  const double start = cpu_seconds();
  std::string message = "accepted";
  try {
    render(parse_template(source), {}, 0);
  } catch (const TemplateError& error) {
    message = error.what();
  }
  EXPECT_LT(cpu_seconds() - start, kMostSeconds) << source.substr(0, 200);
  return message;
}

std::string repeated(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

TEST(ChatBudget, EndsLoopsThatWouldNotEnd) {
  const std::string loop = "{% for i in range(100000) %}";
  EXPECT_THAT(refusal(repeated(loop, 4) + "x" + repeated("{% endfor %}", 4)), HasSubstr("steps"));
  EXPECT_THAT(refusal("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
              HasSubstr("nested deeper"));
  EXPECT_THAT(
      refusal(
          "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}"),
      HasSubstr("nested deeper"));
  EXPECT_THAT(
      refusal("{% macro m() %}{% call m() %}{% endcall %}{{ caller }}{% endmacro %}{{ m() }}"),
      HasSubstr("nested deeper"));
  EXPECT_THAT(refusal("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}"),
              HasSubstr("nested deeper"));
  // Each call makes two more: no deep nesting is needed.
  EXPECT_THAT(refusal("{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
                      "{% endmacro %}{{ m(60) }}"),
              HasSubstr("steps"));
}

TEST(ChatBudget, RefusesRangesAndRepeatsThatAreTooLong) {
  EXPECT_THAT(refusal("{{ range(10**9) }}"), HasSubstr("more than 100000"));
  EXPECT_THAT(refusal("{{ range(-9223372036854775807, 9223372036854775807) }}"),
              HasSubstr("more than 100000"));
  EXPECT_THAT(refusal("{{ 'a' * 10**12 }}"), HasSubstr("MiB of memory"));
  EXPECT_THAT(refusal("{{ [1] * 10**12 }}"), HasSubstr("MiB of memory"));
  EXPECT_THAT(refusal("{{ ([1] * 1000) * 10**9 }}"), HasSubstr("MiB of memory"));
  EXPECT_THAT(refusal("{{ '%1000000000d' % 1 }}"), HasSubstr("width"));
  EXPECT_THAT(refusal("{{ '{:>1000000000}'.format('a') }}"), HasSubstr("width"));
  EXPECT_THAT(refusal("{{ 'a'.ljust(10**12) }}"), HasSubstr("MiB of memory"));
  EXPECT_THAT(refusal("{{ 'a' | center(10**12) }}"), HasSubstr("center"));
  EXPECT_THAT(refusal("{{ 'a' | indent(10**12) }}"), HasSubstr("indent"));
  EXPECT_THAT(refusal("{{ [1] | tojson(indent=10**12) }}"), HasSubstr("indent"));
  EXPECT_THAT(refusal("{{ [1] | batch(10**12, 0) | list }}"), HasSubstr("batch"));
}

TEST(ChatBudget, BoundsWhatGrowsByDoubling) {
  const auto doubling = [](const std::string& step) {
    return "{% set n = namespace(x='ab', y=['ab']) %}{% for i in range(64) %}{% set n." + step +
           " %}{% endfor %}";
  };
  for (const char* step :
       {"x = n.x + n.x", "x = n.x ~ n.x", "x = n.x * 2", "x = n.x.replace('a', 'aa')",
        "y = n.y + n.y", "y = n.y * 2", "x = '%s%s' % (n.x, n.x)", "x = '{0}{0}'.format(n.x)",
        "x = n.x.join(['', '', ''])", "x = [n.x, n.x] | join", "x = n.x | replace('a', 'aa')",
        "x = n.x | tojson | tojson", "x = [n.x, n.x] | string"}) {
    EXPECT_THAT(refusal(doubling(step)),
                AnyOf(HasSubstr("MiB of memory"), HasSubstr("steps"), HasSubstr("nested deeper")))
        << step;
  }
  EXPECT_THAT(
      refusal("{% set n = namespace(x='ab') %}{% for i in range(64) %}{% set n.x %}{{ n.x }}"
              "{{ n.x }}{% endset %}{% endfor %}"),
      AnyOf(HasSubstr("MiB of memory"), HasSubstr("steps")));
  EXPECT_THAT(refusal("{% for i in range(100000) %}" + std::string(100'000, 'x') + "{% endfor %}"),
              AnyOf(HasSubstr("MiB of memory"), HasSubstr("steps")));
}

TEST(ChatBudget, BoundsValuesThatShareTheirParts) {
  const auto shared = [](const std::string& open, const std::string& close,
                         const std::string& use) {
    return "{% set n = namespace(x=" + open + "1, 1" + close + ", y=" + open + "1, 1" + close +
           ") %}{% for i in range(64) %}{% set n.x = " + open + "n.x, n.x" + close +
           " %}{% set n.y = " + open + "n.y, n.y" + close + " %}{% endfor %}" + use;
  };
  for (const char* use : {"{{ n.x }}", "{{ n.x == n.y }}", "{{ n.x < n.y }}", "{{ n.x | tojson }}",
                          "{{ n.x | string | length }}"}) {
    EXPECT_THAT(refusal(shared("[", "]", use)), AnyOf(HasSubstr("steps"), HasSubstr("MiB"))) << use;
  }
  EXPECT_THAT(refusal(shared("(", ")", "{{ {n.x: 1} }}")), HasSubstr("cannot be a key"));
  EXPECT_THAT(refusal(shared("(", ")", "{{ [n.x] | unique | list }}")),
              HasSubstr("cannot be a key"));
}

TEST(ChatBudget, BoundsWhatIsQuadratic) {
  const std::string texts = "{% set a = 'a' * 4000000 %}{% set b = 'a' * 2000000 + 'b' %}";
  for (const char* use : {"b in a", "a.find(b)", "a.rfind('b' + b)", "a.count(b)", "a.split(b)",
                          "a.replace(b, '')", "a | replace(b, '')", "a.partition(b)"}) {
    EXPECT_THAT(refusal(texts + "{{ " + use + " }}"), HasSubstr("steps")) << use;
  }
  EXPECT_THAT(refusal(texts + "{{ a.strip(b) }}"), AnyOf(HasSubstr("steps"), HasSubstr("strip")));
  EXPECT_THAT(refusal(texts + "{% for i in range(100000) %}{{ a[i] }}{{ a | length }}{% endfor %}"),
              HasSubstr("steps"));
}

TEST(ChatBudget, RefusesTemplatesThatAreNestedTooDeeply) {
  for (const auto& [open, close] :
       std::vector<std::pair<std::string, std::string>>{{"{{ ", " }}"}, {"{{ (", ") }}"}}) {
    const std::string deep = open + repeated("(", 100'000) + "1" + repeated(")", 100'000) + close;
    EXPECT_THAT(refusal(deep), HasSubstr("nested deeper"));
  }
  EXPECT_THAT(refusal("{{ " + repeated("[", 100'000) + repeated("]", 100'000) + " }}"),
              HasSubstr("nested deeper"));
  EXPECT_THAT(refusal("{{ " + repeated("not ", 100'000) + "1 }}"), HasSubstr("nested deeper"));
  EXPECT_THAT(refusal("{{ " + repeated("-", 100'000) + "1 }}"), HasSubstr("nested deeper"));
  EXPECT_THAT(refusal("{{ 1" + repeated(" + 1", 100'000) + " }}"), HasSubstr("in a row"));
  EXPECT_THAT(refusal("{{ x" + repeated(".y", 100'000) + " }}"), HasSubstr("in a row"));
  EXPECT_THAT(refusal("{{ x" + repeated(" | trim", 100'000) + " }}"), HasSubstr("in a row"));
  EXPECT_THAT(refusal("{{ x" + repeated("()", 100'000) + " }}"), HasSubstr("in a row"));
  EXPECT_THAT(refusal("{{ 1" + repeated(" if 1", 100'000) + " }}"), HasSubstr("in a row"));
  EXPECT_THAT(refusal("{{ 1" + repeated(" if 1 else 1", 100'000) + " }}"),
              HasSubstr("nested deeper"));
  EXPECT_THAT(refusal(repeated("{% if 1 %}", 100'000)), HasSubstr("nested deeper"));
  EXPECT_THAT(refusal("{% set " + repeated("(", 100'000) + repeated(")", 100'000) + " %}"),
              HasSubstr("nested deeper"));
}

TEST(ChatBudget, RefusesValuesThatAreNestedTooDeeply) {
  EXPECT_THAT(refusal("{% set n = namespace(x=[]) %}{% for i in range(1000) %}{% set n.x = [n.x] %}"
                      "{% endfor %}{{ n.x }}"),
              HasSubstr("nested deeper than 100"));
  EXPECT_THAT(refusal("{% set n = namespace(x={}) %}{% for i in range(1000) %}"
                      "{% set n.x = {'a': n.x} %}{% endfor %}"),
              HasSubstr("nested deeper than 100"));
  EXPECT_THAT(refusal("{% set n = namespace(x=[1]) %}{% for i in range(1000) %}"
                      "{% set n.x = n.x | map('string') %}{% endfor %}{{ n.x | list }}"),
              HasSubstr("nested deeper than 100"));
  EXPECT_THROW(parse_json(repeated("[", 100'000), 64), TemplateError);
}

/// Sets `g.c` to what holds it, as often as the budget allows.
std::string chain(const std::string& step, int times = 4) {
  return "{% set g = namespace(c=[1]) %}{% for i in range(100000) %}" + repeated(step, times) +
         "{% endfor %}";
}

TEST(ChatBudget, CountsTheDepthOfWhatFunctionsLoopsAndGeneratorsHold) {
  for (const char* value :
       {"[g.c].index", "[g.c].count", "[g.c].copy", "{'a': g.c}.get", "{'a': g.c}.items",
        "{'a': g.c}.values", "{'a': g.c}.copy", "joiner(g.c)", "[1] | map('default', g.c)",
        "[1] | map(attribute='a', default=g.c)", "[1] | select('eq', g.c)",
        "[1] | rejectattr('a', 'eq', g.c)"}) {
    EXPECT_THAT(refusal(chain("{% set g.c = " + std::string(value) + " %}")),
                HasSubstr("nested deeper than 100"))
        << value;
  }
  for (const char* value : {"loop", "loop.cycle", "loop.changed"}) {
    const std::string set = "{% set g.c = " + std::string(value) + " %}";
    for (const char* items : {"[g.c]", "[g.c] if true", "[1, g.c] if loop is undefined or true"}) {
      EXPECT_THAT(
          refusal(chain("{% for j in " + std::string(items) + " %}" + set + "{% endfor %}")),
          HasSubstr("nested deeper than 100"))
          << value << " over " << items;
    }
  }
}

TEST(ChatBudget, LoopsThatAreOverHoldNoScope) {
  // A chain of scopes and loops, each of which holds the one before: no list is nested in it.
  for (const char* head : {"[1] if true", "[1] recursive"}) {
    EXPECT_EQ(refusal(chain("{% set q = g.c %}{% for j in " + std::string(head) +
                                "%}{% set g.c = loop %}{% endfor %}",
                            1)),
              "accepted")
        << head;
  }
  EXPECT_THAT(refusal("{% set g = namespace() %}{% for j in [1, 2] if true %}{% set g.c = loop %}"
                      "{% break %}{% endfor %}{{ g.c.length }}"),
              HasSubstr("gone once it is left"));
  EXPECT_THAT(refusal("{% set g = namespace() %}{% for j in [1] recursive %}{% set g.c = loop %}"
                      "{% endfor %}{{ g.c([1]) }}"),
              HasSubstr("after its end"));
}

TEST(ChatBudget, SearchesInAGeneratorAreLinear) {
  EXPECT_EQ(refusal("{% set g = range(100000) | map('string') %}{% for i in range(100000) %}"
                    "{{ i | string in g }}{% endfor %}"),
            "accepted");
}

TEST(ChatBudget, NamesArgumentsAndParametersAreSearchedInLittleTime) {
  const auto numbered = [](const std::string& before, const std::string& after, int count) {
    std::string all;
    for (int i = 0; i < count; ++i) all += before + std::to_string(i) + after;
    return all;
  };
  EXPECT_EQ(refusal(numbered("{% set a", " = 1 %}", 60'000)), "accepted");
  EXPECT_EQ(refusal("{% for i in [1] %}" + numbered("{% set a", " = 1 %}", 50'000) +
                    numbered("{{ a", " }}", 10'000) + "{% endfor %}"),
            "accepted");
  EXPECT_THAT(refusal("{% macro m(" + numbered("a", ", ", 100'000) + "b) %}{% endmacro %}"),
              HasSubstr("a macro with more than 255 parameters"));
  EXPECT_THAT(refusal("{% if false %}{{ m(" + numbered("a", "=1, ", 80'000) + "b=1) }}{% endif %}"),
              HasSubstr("a call with more than 255 named arguments"));
  EXPECT_THAT(refusal("{% macro m() %}{{ kwargs }}{% endmacro %}"
                      "{{ m(**dict(range(90000) | map('string') | batch(2))) }}"),
              HasSubstr("a call with more than 255 named arguments"));
  // Names that nobody has, looked up through many scopes of many names.
  EXPECT_THAT(refusal(numbered("{% with a0=1, a1=1, a2=1, a3=1, a4=1, a5=1, b=", " %}", 100) +
                      "{% for i in range(100000) %}{% for j in range(100000) %}{{ none_such }}"
                      "{% endfor %}{% endfor %}" +
                      repeated("{% endwith %}", 100)),
              HasSubstr("steps"));
  EXPECT_THAT(refusal("{{ " + std::string(100'000, 'a') + " }}"), HasSubstr("a name of more than"));
}

TEST(ChatBudget, LongKeysOfDictsAreCounted) {
  const std::string key = "{% set k = 'a' * 60000 %}{% set d = {k: 1} %}";
  const auto often = [&](const std::string& use) {
    return key + "{% for i in range(100000) %}{% for j in range(100000) %}" + use +
           "{% endfor %}{% endfor %}";
  };
  for (const char* use : {"{{ k in d }}", "{{ d[k] }}", "{{ d.get(k) }}", "{{ d == {k: 1} }}"}) {
    EXPECT_THAT(refusal(often(use)), AnyOf(HasSubstr("steps"), HasSubstr("MiB"))) << use;
  }
  EXPECT_THAT(refusal("{{ {'a' * 10**6: 1} }}"), HasSubstr("too long"));
}

TEST(ChatBudget, LeavesRoomForRealConversations) {
  const std::string source =
      "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + "
      "'<|im_end|>' + '\\n' }}{% endfor %}";
  std::vector<Value> messages;
  std::size_t bytes = 0;
  for (int i = 0; i < 4000; ++i) {
    Dict message;
    message.set(Value::text("role"), Value::text(i % 2 == 0 ? "user" : "assistant"));
    message.set(Value::text("content"), Value::text(std::string(2000, 'x')));
    bytes += 2000;
    messages.push_back(std::make_shared<const Dict>(std::move(message)));
  }
  Dict variables;
  variables.set(Value::text("messages"), Value::list(std::move(messages)));
  EXPECT_GT(render(parse_template(source), variables, 0).size(), bytes);
}

}  // namespace
}  // namespace zi::chat
