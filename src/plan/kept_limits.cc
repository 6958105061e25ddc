#include "plan/kept_limits.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "zero_infer/error.h"

namespace zi {

std::filesystem::path kept_limits_path(const std::string& backend, int world, int ranks_per_host) {
  const auto variable = [](const char* name) {
    const char* const value = std::getenv(name);
    return std::filesystem::path(value != nullptr ? value : "");
  };
  std::filesystem::path cache = variable("XDG_CACHE_HOME");
  if (cache.empty() && !variable("HOME").empty()) cache = variable("HOME") / ".cache";
  if (cache.empty()) return {};
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  return cache / "zero-infer" /
         fmt::format("limits-{}-{}-{}ranks{}.json", host.data(), backend, world,
                     world == ranks_per_host ? "" : fmt::format("-{}-a-host", ranks_per_host));
}

void keep_limits(const MachineLimits& limits) {
  const std::filesystem::path path =
      kept_limits_path(limits.backend, limits.world, limits.ranks_per_host);
  if (path.empty()) throw IoError("there is no cache: neither XDG_CACHE_HOME nor HOME is set");
  std::error_code ignored;
  std::filesystem::create_directories(path.parent_path(), ignored);
  std::ofstream out(path);
  out << limits.to_json() << '\n';
  if (!out.flush()) throw IoError(path.string() + " cannot be written");
}

std::optional<MachineLimits> find_kept_limits(const std::string& backend, int world,
                                              int ranks_per_host) {
  const std::filesystem::path path = kept_limits_path(backend, world, ranks_per_host);
  std::ifstream in(path);
  if (path.empty() || !in) return std::nullopt;
  std::ostringstream text;
  text << in.rdbuf();
  return MachineLimits::from_json(text.str(), path.string());
}

}  // namespace zi
