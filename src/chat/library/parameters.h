#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chat/values/value.h"

namespace zi::chat {

/// The arguments of one call, by the names of its parameters.
class Parameters {
 public:
  /// The first `required` of `names` must be given. Throws TemplateError for too many or too few
  /// arguments and for unknown names; `function` is for messages.
  Parameters(std::string_view function, const Arguments& given,
             std::initializer_list<const char*> names, std::size_t required = 0);

  /// Null where it is not given.
  const Value* operator[](std::size_t i) const { return values_[i]; }
  const Value& value(std::size_t i) const { return *values_[i]; }
  /// Each throws TemplateError for a value of another type. None is as if it were not given.
  std::optional<std::string_view> text(std::size_t i) const;
  std::int64_t integer(std::size_t i, std::int64_t absent) const;
  bool flag(std::size_t i, bool absent) const;

 private:
  std::string function_;
  std::vector<const char*> names_;
  std::vector<const Value*> values_;
};

}  // namespace zi::chat
