#pragma once

#include <cstddef>
#include <filesystem>
#include <limits>
#include <string>

namespace zi {

/// What the control groups of this process (v2 or v1, the tightest on the way to the root) leave
/// it.
struct CgroupLimits {
  std::size_t memory_bytes = std::numeric_limits<std::size_t>::max();  // the limit
  std::size_t memory_free_bytes =
      std::numeric_limits<std::size_t>::max();            // limit - use; page cache is free
  double cpus = std::numeric_limits<double>::infinity();  // quota / period
};

/// `membership` is the text of /proc/self/cgroup, `root` where the groups are mounted. What cannot
/// be read counts as no limit.
CgroupLimits read_cgroup_limits(const std::filesystem::path& root, const std::string& membership);

/// Of this process, read now.
CgroupLimits read_cgroup_limits();

}  // namespace zi
