#pragma once

#include <string>
#include <string_view>

namespace zi {

/// The system's text for an errno: `No space left on device`. Any thread.
std::string system_message(int error);

/// `PATH: cannot DO THIS: Permission denied`. `error` is an errno.
std::string system_error_text(std::string_view path, std::string_view what, int error);

}  // namespace zi
