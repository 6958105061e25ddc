#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <system_error>
#include <thread>

namespace zi::test {

/// How many descriptors of a process lead to the file; `process` is its id or "self".
inline int times_open(const std::filesystem::path& file, const std::string& process = "self") {
  int count = 0;
  std::error_code error;
  const std::filesystem::path descriptors = "/proc/" + process + "/fd";
  for (std::filesystem::directory_iterator each(descriptors, error), end; !error && each != end;
       each.increment(error)) {
    std::error_code gone;  // another thread closes files meanwhile
    if (std::filesystem::equivalent(each->path(), file, gone) && !gone) ++count;
  }
  return count;
}

/// Waits until `condition` holds, a minute at most; returns whether it does.
template <typename Condition>
bool wait_until(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace zi::test
