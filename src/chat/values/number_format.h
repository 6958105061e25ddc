#pragma once

#include <string>
#include <string_view>

#include "chat/values/budget.h"
#include "chat/values/value.h"

namespace zi::chat {

constexpr int kMostWidth = 100'000;
constexpr int kMostPrecision = 100;

/// What follows a `%` or a `:` in a format.
struct FormatSpec {
  std::string fill = " ";
  char align = '\0';  // < > ^, or = for zeros behind the sign
  char sign = '\0';   // + or a space
  bool alternative = false;
  bool commas = false;
  int width = 0;
  int precision = -1;
  char type = '\0';
};

/// Takes a number of at most `most` from the front of `rest`; 0 where there is none.
int read_number(std::string_view& rest, int most);
/// `body` with its sign, as wide as wanted. `absent` aligns where the format does not say how.
std::string aligned(std::string body, std::string_view sign, const FormatSpec& spec, char absent,
                    Budget& budget);
/// The first characters, where there is a precision.
std::string cut(std::string text, int precision);
/// A number in the format. Throws TemplateError for what is not supported.
std::string number_text(const Value& value, const FormatSpec& spec, Budget& budget);

}  // namespace zi::chat
