#include "base/system_error.h"

#include <fmt/format.h>

#include <system_error>

namespace zi {

// Not std::strerror: its text is shared by all threads.
std::string system_message(int error) { return std::generic_category().message(error); }

std::string system_error_text(std::string_view path, std::string_view what, int error) {
  return fmt::format("{}: {}: {}", path, what, system_message(error));
}

}  // namespace zi
