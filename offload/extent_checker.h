#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <span>
#include <string>
#include <thread>

#include "offload/shard_header.h"

namespace zi {

/// Compares checksums on a thread of its own, in the order of the calls, so that whoever waits for
/// storage is free to start the next read at once. One thread calls it; the bytes must not change
/// until they count as checked. The destructor drops what is not begun and waits for the rest.
class ExtentChecker {
 public:
  /// `path` is named in failures.
  explicit ExtentChecker(std::string path);
  ~ExtentChecker();
  ExtentChecker(const ExtentChecker&) = delete;
  ExtentChecker& operator=(const ExtentChecker&) = delete;

  void check(const ShardExtent& extent, int unit, std::span<const std::byte> bytes);

  /// How many extents have been checked, damaged ones included.
  std::uint64_t checked() const;

  /// Blocks until that many are; throws the IoError of the first damaged one.
  void wait(std::uint64_t count);

 private:
  struct Job {
    ShardExtent extent;
    int unit;
    std::span<const std::byte> bytes;
  };
  void work();

  const std::string path_;
  mutable std::mutex mutex_;  // guards the next four
  std::deque<Job> jobs_;
  std::uint64_t checked_ = 0;
  bool stopping_ = false;
  std::exception_ptr failure_;
  std::condition_variable queued_;
  std::condition_variable done_;
  std::jthread worker_;  // last: it uses all of the above
};

}  // namespace zi
