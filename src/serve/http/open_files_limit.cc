#include "serve/http/open_files_limit.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <iterator>
#include <system_error>

#include "base/system_error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

constexpr rlim_t kSpare = 64;  // for files that are opened later

rlim_t open_files() {
  std::error_code error;
  const std::filesystem::directory_iterator first("/proc/self/fd", error);
  return error ? 0
               : static_cast<rlim_t>(std::distance(first, std::filesystem::directory_iterator()));
}

}  // namespace

void allow_open_files(std::size_t more) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t needed = open_files() + more + kSpare;
  if (limit.rlim_cur >= needed) return;
  const rlim_t before = limit.rlim_cur;
  limit.rlim_cur = std::min(needed, limit.rlim_max);
  int error = 0;
  if (limit.rlim_cur > before && ::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    error = errno;
    limit.rlim_cur = before;
  }
  if (limit.rlim_cur >= needed) return;
  log_warning(fmt::format(
      "{} connections need {} open files, and this process may have {}{}: further connections "
      "wait; "
      "raise the limit (`ulimit -n`, LimitNOFILE=) or take fewer connections",
      more, needed, limit.rlim_cur, error != 0 ? " (" + system_message(error) + ")" : ""));
}

}  // namespace zi
