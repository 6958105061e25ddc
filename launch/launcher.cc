#include "launch/launcher.h"

#include <charconv>
#include <cstdlib>
#include <string_view>

namespace zi {

std::optional<std::chrono::milliseconds> launcher_patience() {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) return std::nullopt;
  int seconds = 1;  // Open MPI's default; --mca gives it to the ranks by their environment
  if (const char* const given = std::getenv("OMPI_MCA_odls_base_sigkill_timeout")) {
    const std::string_view text = given;
    std::from_chars(text.data(), text.data() + text.size(), seconds);
  }
  return std::chrono::seconds(seconds);
}

}  // namespace zi
