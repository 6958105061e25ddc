#include "launch/standard_descriptors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <system_error>

namespace zi {
namespace {

namespace fs = std::filesystem;

bool is_closed(int fd) { return ::fcntl(fd, F_GETFD) < 0 && errno == EBADF; }

/// An mpirun whose standard input is closed opens a pipe of its own as descriptor 0, and reads it
/// for rank 0 forever. It is recognised by having the other end as well.
bool launcher_reads_itself() {
  if (std::getenv("OMPI_COMM_WORLD_RANK") == nullptr) return false;
  const fs::path folder = fmt::format("/proc/{}/fd", ::getppid());
  std::error_code error;
  const fs::path input = fs::read_symlink(folder / "0", error);
  if (error || !input.string().starts_with("pipe:")) return false;
  fs::directory_iterator entry(folder, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    std::error_code gone;
    const fs::perms mode = fs::symlink_status(entry->path(), gone).permissions();
    const bool writes = (mode & fs::perms::owner_write) != fs::perms::none;
    if (writes && fs::read_symlink(entry->path(), gone) == input) return true;
  }
  return false;
}

}  // namespace

ClosedDescriptors fill_standard_descriptors() {
  const ClosedDescriptors closed{.input = is_closed(STDIN_FILENO) || launcher_reads_itself(),
                                 .output = is_closed(STDOUT_FILENO)};
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (!is_closed(fd)) continue;
    // The lowest free number, which is this one: those below are open by now. Standard output gets
    // an end that cannot be written, so that no result is taken for written.
    ::open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY);
  }
  return closed;
}

}  // namespace zi
