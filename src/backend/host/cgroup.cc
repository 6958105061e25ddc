#include "backend/host/cgroup.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>

namespace zi {
namespace {

namespace fs = std::filesystem;

/// The file's first number; empty for `max`, -1 or a file that is not there.
std::optional<std::size_t> read_number(const fs::path& file) {
  std::ifstream in(file);
  long long value = 0;
  if (!(in >> value) || value < 0) return std::nullopt;
  return static_cast<std::size_t>(value);
}

/// The sum of the named lines of a memory.stat.
std::size_t read_stat(const fs::path& file, const std::string& first, const std::string& second) {
  std::ifstream in(file);
  std::string key;
  std::size_t value = 0;
  std::size_t sum = 0;
  while (in >> key >> value) {
    if (key == first || key == second) sum += value;
  }
  return sum;
}

void take_memory(const fs::path& group, const char* limit_file, const char* use_file,
                 const std::string& stat_prefix, CgroupLimits& limits) {
  const auto limit = read_number(group / limit_file);
  if (!limit) return;
  const std::size_t cache =
      read_stat(group / "memory.stat", stat_prefix + "inactive_file", stat_prefix + "active_file");
  const std::size_t all = read_number(group / use_file).value_or(0);
  const std::size_t use = all - std::min(all, cache);
  limits.memory_bytes = std::min(limits.memory_bytes, *limit);
  limits.memory_free_bytes = std::min(limits.memory_free_bytes, *limit - std::min(*limit, use));
}

void take_cpus(const fs::path& group, bool v2, CgroupLimits& limits) {
  std::optional<std::size_t> quota;
  std::optional<std::size_t> period;
  if (v2) {
    std::ifstream in(group / "cpu.max");  // `max 100000` or `150000 100000`
    std::size_t q = 0;
    std::size_t p = 0;
    if (in >> q >> p) quota = q, period = p;
  } else {
    quota = read_number(group / "cpu.cfs_quota_us");
    period = read_number(group / "cpu.cfs_period_us");
  }
  if (!quota || !period || *quota == 0 || *period == 0) return;
  limits.cpus = std::min(limits.cpus, static_cast<double>(*quota) / static_cast<double>(*period));
}

/// Calls visit(directory) for the group and its parents up to the mount. In a container the path of
/// the host may not exist: then only the directories that do count.
template <typename Visit>
void walk(const fs::path& mount, const fs::path& group, Visit visit) {
  fs::path relative = group.relative_path();
  while (true) {
    visit(mount / relative);
    if (relative.empty()) return;
    relative = relative.parent_path();
  }
}

}  // namespace

CgroupLimits read_cgroup_limits(const fs::path& root, const std::string& membership) {
  CgroupLimits limits;
  std::istringstream lines(membership);
  for (std::string line; std::getline(lines, line);) {  // `4:memory:/path`, v2: `0::/path`
    const std::size_t first = line.find(':');
    if (first == std::string::npos) continue;
    const std::size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string path = line.substr(second + 1);
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    if (first + 1 == second) {
      walk(root, path, [&](const fs::path& group) {
        take_memory(group, "memory.max", "memory.current", "", limits);
        take_cpus(group, true, limits);
      });
    }
    for (std::string controller; std::getline(controllers, controller, ',');) {
      if (controller == "memory") {
        walk(root / controller, path, [&](const fs::path& group) {
          take_memory(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_", limits);
        });
      } else if (controller == "cpu") {
        walk(root / controller, path,
             [&](const fs::path& group) { take_cpus(group, false, limits); });
      }
    }
  }
  return limits;
}

CgroupLimits read_cgroup_limits() {
  std::ifstream in("/proc/self/cgroup");
  const std::string membership{std::istreambuf_iterator<char>(in), {}};
  return read_cgroup_limits("/sys/fs/cgroup", membership);
}

}  // namespace zi
