#pragma once

#include <string>
#include <string_view>

namespace zi {

enum class LogLevel { kQuiet, kNormal, kVerbose };

/// Sets what is printed and the `[rank 3/8 host]` prefix (empty for a world of one). Called once by
/// `main`, before any thread starts. Everything goes to stderr, one whole line per call.
void set_log(LogLevel level, std::string_view prefix);

/// A line that a user wants to see once; hidden by `--quiet`.
void log_info(std::string_view message);
/// A fallback that is used instead of what was asked for, and why; never hidden.
void log_warning(std::string_view message);
/// A failure, also of one prompt alone; never hidden.
void log_error(std::string_view message);
/// Shown by `--verbose` only.
void log_verbose(std::string_view message);

}  // namespace zi
