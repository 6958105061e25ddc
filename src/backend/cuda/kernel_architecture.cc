#include "backend/cuda/kernel_architecture.h"

#include <charconv>

namespace zi {
namespace {

constexpr int kHopper = 90;

/// One entry: a number, `a` for code of that device alone or `f` for code of its family, and
/// `-real` or `-virtual` where the build holds only machine code or only PTX.
bool runs_on(std::string_view entry, int device) {
  if (entry == "native") return true;
  int architecture = 0;
  const char* const end = entry.data() + entry.size();
  const auto [rest, error] = std::from_chars(entry.data(), end, architecture);
  if (error != std::errc() || device < architecture) return false;
  const std::string_view suffix(rest, static_cast<std::size_t>(end - rest));
  if (suffix.starts_with('a')) return device == architecture;
  const bool same_family = device / 10 == architecture / 10;
  if (suffix.starts_with('f')) return same_family;
  return same_family || !suffix.ends_with("-real");
}

}  // namespace

KernelFeatures kernel_features(int compiled, int device) {
  return {.early_launches = compiled >= kHopper && device >= kHopper,
          .hopper_products = compiled == kHopper && device == kHopper};
}

bool has_code_for(std::string_view architectures, int device) {
  while (!architectures.empty()) {
    const std::size_t length = architectures.find(' ');
    if (runs_on(architectures.substr(0, length), device)) return true;
    architectures.remove_prefix(length == std::string_view::npos ? architectures.size()
                                                                 : length + 1);
  }
  return false;
}

}  // namespace zi
