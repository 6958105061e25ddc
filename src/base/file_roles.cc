#include "base/file_roles.h"

#include <fmt/format.h>
#include <unistd.h>

#include <optional>
#include <utility>

#include "zero_infer/error.h"

namespace zi {

FileRoles::FileRoles() {
  for (const auto& [fd, name] :
       {std::pair(STDOUT_FILENO, "standard output"), std::pair(STDERR_FILENO, "standard error")}) {
    // Nothing is lost in a pipe: `--output /dev/stdout | less` is as good as `--output -`.
    const std::optional<FileIdentity> file = identity_of(fd);
    if (file && file->regular) written_.push_back({name, *file, true});
  }
}

void FileRoles::reads(const std::string& name, const std::filesystem::path& path) {
  const std::optional<FileIdentity> file =
      path == "-" ? identity_of(STDIN_FILENO) : identity_of(path);
  if (file && file->exists()) read_.push_back({name, *file});
}

void FileRoles::writes(const std::string& flag, const std::filesystem::path& path) {
  if (path == "-") return;
  if (const auto file = identity_of(path)) {
    written_.push_back({fmt::format("{} {}", flag, path.string()), *file});
  }
}

void FileRoles::check() const {
  for (std::size_t i = 0; i < written_.size(); ++i) {
    const Role& output = written_[i];
    for (const Role& input : read_) {
      if (output.file != input.file) continue;
      throw ConfigError(fmt::format(
          "{} and {} are the same file, which would be destroyed: give the output another name",
          output.name, input.name));
    }
    for (std::size_t j = 0; j < i; ++j) {
      const Role& other = written_[j];  // standard streams come first
      if (output.file != other.file || output.standard) continue;
      throw ConfigError(fmt::format(
          "{} and {} are the same file, in which they would destroy each other: {}", other.name,
          output.name,
          other.standard ? "redirect one of them elsewhere, or give the other another name"
                         : "give one of them another name"));
    }
  }
}

}  // namespace zi
