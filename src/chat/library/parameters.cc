#include "chat/library/parameters.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/printable_text.h"
#include "chat/values/operators.h"
#include "chat/values/template_error.h"

namespace zi::chat {

Parameters::Parameters(std::string_view function, const Arguments& given,
                       std::initializer_list<const char*> names, std::size_t required)
    : function_(function), names_(names), values_(names.size()) {
  if (given.values.size() > names_.size()) {
    throw TemplateError(fmt::format("`{}` takes at most {} arguments, not {}", function_,
                                    names_.size(), given.values.size()));
  }
  for (std::size_t i = 0; i < given.values.size(); ++i) values_[i] = &given.values[i];
  for (const auto& [name, value] : given.named) {
    const auto found = std::ranges::find(names_, std::string_view(name),
                                         [](const char* known) { return std::string_view(known); });
    if (found == names_.end()) {
      throw TemplateError(
          fmt::format("`{}` with the argument {} is not supported", function_, in_quotes(name)));
    }
    const auto i = static_cast<std::size_t>(found - names_.begin());
    if (values_[i] != nullptr) {
      throw TemplateError(fmt::format("`{}` has two values for {}", function_, in_quotes(name)));
    }
    values_[i] = &value;
  }
  for (std::size_t i = 0; i < required; ++i) {
    if (values_[i] == nullptr) {
      throw TemplateError(fmt::format("`{}` needs the argument `{}`", function_, names_[i]));
    }
  }
}

std::optional<std::string_view> Parameters::text(std::size_t i) const {
  const Value* const value = values_[i];
  if (value == nullptr || value->is_none()) return std::nullopt;
  if (value->text() == nullptr) {
    fail_type(fmt::format("`{}` needs a text for `{}`, not", function_, names_[i]), *value);
  }
  return value->text()->text;
}

std::int64_t Parameters::integer(std::size_t i, std::int64_t absent) const {
  const Value* const value = values_[i];
  if (value == nullptr || value->is_none()) return absent;
  const auto number = value->integer();
  if (!number) {
    fail_type(fmt::format("`{}` needs an integer for `{}`, not", function_, names_[i]), *value);
  }
  return *number;
}

bool Parameters::flag(std::size_t i, bool absent) const {
  return values_[i] == nullptr ? absent : truth(*values_[i]);
}

}  // namespace zi::chat
