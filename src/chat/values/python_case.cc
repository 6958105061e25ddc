#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include "chat/values/python_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

icu::UnicodeString utf16(std::string_view text) {
  return icu::UnicodeString::fromUTF8(icu::StringPiece(text.data(), static_cast<int>(text.size())));
}

std::string utf8(const icu::UnicodeString& text) {
  std::string out;
  text.toUTF8String(out);
  return out;
}

UChar32 icu_point(char32_t point) { return static_cast<UChar32>(point); }

/// The character as the first one of a title. ICU's whole titles begin words where Python does not.
std::string title_point(std::string_view character) {
  const char32_t point = first_point(character);
  if (utf16(character).toUpper(icu::Locale::getRoot()).countChar32() != 1) {
    throw TemplateError("the title case of a character that becomes several is not supported");
  }
  return utf8_of(static_cast<char32_t>(u_totitle(icu_point(point))));
}

bool is_cased(char32_t point) { return u_hasBinaryProperty(icu_point(point), UCHAR_CASED) != 0; }

}  // namespace

std::string upper(std::string_view text) {
  return utf8(utf16(text).toUpper(icu::Locale::getRoot()));
}

std::string lower(std::string_view text) {
  return utf8(utf16(text).toLower(icu::Locale::getRoot()));
}

std::string title(std::string_view text) {
  std::string out;
  bool inside = false;
  for (const std::string_view character : points(text)) {
    out += inside ? lower(character) : title_point(character);
    inside = is_cased(first_point(character));
  }
  return out;
}

std::string capitalize(std::string_view text) {
  if (text.empty()) return {};
  const std::size_t bytes = offset_of_point(text, 1);
  return title_point(text.substr(0, bytes)) + lower(text.substr(bytes));
}

bool is_upper(std::string_view text) {
  bool cased = false;
  for (const std::string_view character : points(text)) {
    const UChar32 point = icu_point(first_point(character));
    if (u_hasBinaryProperty(point, UCHAR_LOWERCASE) || u_charType(point) == U_TITLECASE_LETTER) {
      return false;
    }
    cased = cased || u_hasBinaryProperty(point, UCHAR_UPPERCASE);
  }
  return cased;
}

bool is_lower(std::string_view text) {
  bool cased = false;
  for (const std::string_view character : points(text)) {
    const UChar32 point = icu_point(first_point(character));
    if (u_hasBinaryProperty(point, UCHAR_UPPERCASE) || u_charType(point) == U_TITLECASE_LETTER) {
      return false;
    }
    cased = cased || u_hasBinaryProperty(point, UCHAR_LOWERCASE);
  }
  return cased;
}

bool is_alpha(char32_t point) { return u_isalpha(icu_point(point)) != 0; }

bool is_digit(char32_t point) {
  const int type = u_getIntPropertyValue(icu_point(point), UCHAR_NUMERIC_TYPE);
  return type == U_NT_DECIMAL || type == U_NT_DIGIT;
}

bool is_alnum(char32_t point) {
  return is_alpha(point) ||
         u_getIntPropertyValue(icu_point(point), UCHAR_NUMERIC_TYPE) != U_NT_NONE;
}

bool is_printable(char32_t point) {
  if (point == ' ') return true;
  switch (u_charType(icu_point(point))) {
    case U_UNASSIGNED:
    case U_CONTROL_CHAR:
    case U_FORMAT_CHAR:
    case U_PRIVATE_USE_CHAR:
    case U_SURROGATE:
    case U_LINE_SEPARATOR:
    case U_PARAGRAPH_SEPARATOR:
    case U_SPACE_SEPARATOR:
      return false;
    default:
      return true;
  }
}

}  // namespace zi::chat
