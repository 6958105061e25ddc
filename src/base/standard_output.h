#pragma once

#include <string_view>

namespace zi {

/// Writes all of `text` to standard output, with nothing left in a buffer. Throws IoError, as for a
/// full disk.
void print(std::string_view text);

}  // namespace zi
