#pragma once

#include <filesystem>
#include <string>

#include "base/file_descriptor.h"
#include "text/result.h"

namespace zi {

/// The output file of a job, written by rank 0: each line is whole and on its way to the disk when
/// `write` returns.
class ResultFile {
 public:
  /// `path` may be `-` for standard output. Creates or truncates the file; with `append` (--resume)
  /// keeps it and cuts off an unfinished last line. Throws IoError (directory missing, not
  /// writable).
  ResultFile(const std::filesystem::path& path, bool append);
  ~ResultFile();
  ResultFile(const ResultFile&) = delete;
  ResultFile& operator=(const ResultFile&) = delete;
  /// Throws IoError naming the path (disk full, ..); the file then holds whole lines only.
  void write(const Result& result);

 private:
  std::string path_;
  FileDescriptor file_;
};

}  // namespace zi
