#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace zi::chat {

/// An ASCII digit.
inline bool is_digit_byte(char c) { return c >= '0' && c <= '9'; }

/// Texts as Python has them: sequences of code points. All texts here are valid UTF-8.

std::size_t count_points(std::string_view text);
/// The characters of a text, one by one.
std::vector<std::string_view> points(std::string_view text);
/// Offset of the byte where code point `index` begins; the size where there are fewer.
std::size_t offset_of_point(std::string_view text, std::size_t index);
char32_t first_point(std::string_view text);
/// Empty for a surrogate or for what is beyond Unicode.
std::string utf8_of(char32_t point);

/// What str.isspace() takes for white space.
bool is_space(char32_t point);

enum class Side { kLeft, kRight, kBoth };
/// str.strip(): white space, or the given characters.
std::string_view strip(std::string_view text, Side side,
                       std::optional<std::string_view> characters = std::nullopt);
/// str.split(): at white space, or at a separator that is not empty; at most `most` cuts from the
/// left, or from the right; -1: all.
std::vector<std::string_view> split(std::string_view text,
                                    std::optional<std::string_view> separator, std::int64_t most,
                                    bool from_right);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);
/// str.replace(): the first `most` places; -1: all.
std::string replace(std::string_view text, std::string_view from, std::string_view to,
                    std::int64_t most);
/// The size that `replace` gives.
std::size_t replaced_size(std::string_view text, std::string_view from, std::string_view to,
                          std::int64_t most);

/// repr() of a text and of a float.
std::string repr_of(std::string_view text);
std::string repr_of(double value);
/// The text with `&<>"'` as HTML entities, as Markup escapes it.
std::string escape_html(std::string_view text);

/// Case, by ICU's tables. `title` is str.title(), `capitalize` str.capitalize().
std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string title(std::string_view text);
std::string capitalize(std::string_view text);
bool is_upper(std::string_view text);
bool is_lower(std::string_view text);
/// str.isalpha(), isdigit(), isalnum() of one code point.
bool is_alpha(char32_t point);
bool is_digit(char32_t point);
bool is_alnum(char32_t point);
/// Whether repr() shows a code point as it is.
bool is_printable(char32_t point);

}  // namespace zi::chat
