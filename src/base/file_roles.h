#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/file_identity.h"

namespace zi {

/// The files that a job reads and those that it writes, to refuse a job that would destroy what it
/// reads or write two things into one file. Where standard output and standard error go to files,
/// these are written too.
class FileRoles {
 public:
  FileRoles();

  /// `name` is for messages: `--prompts in.jsonl`. A path of `-` is standard input. What is not
  /// there is left out: whoever opens it says so.
  void reads(const std::string& name, const std::filesystem::path& path);
  /// `flag` is `--output` or the like. A path of `-` is standard output, which counts already.
  void writes(const std::string& flag, const std::filesystem::path& path);

  /// Throws ConfigError naming both roles of a file that has two.
  void check() const;

 private:
  struct Role {
    std::string name;
    FileIdentity file;
    bool standard = false;  // opened by whoever started the program
  };
  std::vector<Role> read_;
  std::vector<Role> written_;
};

}  // namespace zi
