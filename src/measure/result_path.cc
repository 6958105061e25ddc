#include "measure/result_path.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "base/file_descriptor.h"
#include "base/system_error.h"
#include "zero_infer/error.h"

namespace zi {

void check_can_be_written(const std::string& flag, const std::string& path) {
  const FileDescriptor there(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK));
  if (there.is_open()) return;
  int reason = errno;
  if (reason == ENOENT) {
    const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
    if (::access(folder.c_str(), W_OK | X_OK) == 0) return;
    reason = errno;
  }
  throw IoError(system_error_text(path, flag + " cannot be written", reason));
}

}  // namespace zi
