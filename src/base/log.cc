#include "zero_infer/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>

#include "base/printable_text.h"

namespace zi {
namespace {

/// One logger for the process: spdlog's, which writes whole lines under a lock.
spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made = std::make_shared<spdlog::logger>("zero-infer",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return *instance;
}

/// Whatever a message quotes from a file or a library, it cannot control the terminal.
std::string shown(std::string_view message) { return printable(message, "\n\t"); }

}  // namespace

void set_log(LogLevel level, std::string_view prefix) {
  std::string pattern;
  for (char c : prefix) pattern += c == '%' ? std::string("%%") : std::string(1, c);
  logger().set_pattern(pattern.empty() ? "%v" : pattern + " %v");
  logger().set_level(level == LogLevel::kQuiet    ? spdlog::level::warn
                     : level == LogLevel::kNormal ? spdlog::level::info
                                                  : spdlog::level::debug);
}

void log_info(std::string_view message) { logger().info(shown(message)); }
void log_warning(std::string_view message) { logger().warn("warning: {}", shown(message)); }
void log_error(std::string_view message) { logger().error("error: {}", shown(message)); }
void log_verbose(std::string_view message) { logger().debug(shown(message)); }

}  // namespace zi
