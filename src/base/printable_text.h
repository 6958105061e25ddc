#pragma once

#include <string>
#include <string_view>

namespace zi {

/// Text that a terminal shows and does not obey: control characters (also those beyond ASCII), line
/// separators, marks that turn the direction of writing around, and bytes that are not UTF-8 become
/// U+FFFD. Characters of `kept` stay: a message of several lines keeps "\n".
std::string printable(std::string_view text, std::string_view kept = {});

/// The same for text that is meant to be read as a whole, in any language: the marks of direction
/// stay, and so do "\n" and "\t".
std::string printable_prose(std::string_view text);

/// Text of a file or of a prompt for a message: in backquotes, printable, and cut where it is
/// longer than about 120 bytes.
std::string in_quotes(std::string_view text);

}  // namespace zi
