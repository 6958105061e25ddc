#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/file_descriptor.h"

namespace zi {

/// A file that a job writes. It is opened and locked at the start, so that what cannot be written
/// and what another job is writing ends the job before it loads; its contents stay until there is
/// something to write. The lock is held until the object is destroyed.
class OutputFile {
 public:
  enum class Mode { kReplace, kAppend };

  /// How long to wait for another job's lock: a process that was killed keeps it until the kernel
  /// has taken its memory apart, and ranks whose mpirun was killed until they notice.
  static constexpr std::chrono::milliseconds kPatience{10'000};

  /// `path` may be `-` for standard output; `flag`, `--output` or the like, is for messages. Makes
  /// a missing file. kAppend, which needs a regular file, keeps its contents; kReplace drops them
  /// at the first write. Pipes, devices and standard output are written as they are. Throws
  /// IoError.
  OutputFile(const std::filesystem::path& path, std::string flag, Mode mode,
             std::chrono::milliseconds patience = kPatience);
  /// Takes away a file that was made here, unless something was written or `keep` was called.
  ~OutputFile();
  OutputFile(OutputFile&&) = default;
  OutputFile& operator=(OutputFile&&) = delete;
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Writes all of it; it is on its way to the disk when this returns. Throws IoError naming the
  /// path (disk full, ..): the file is then as it was before; and for a file that was removed,
  /// which would take everything with it. The first write of kReplace promises that only for a disk
  /// without room, on file systems that reserve it (fallocate).
  void write(std::string_view text);

  /// An empty file is a result too: it stays when nothing is written.
  void keep() { made_.clear(); }

  /// For messages: the path, or `standard output`.
  const std::string& name() const { return name_; }
  /// The file from its beginning, for reading; with kAppend only. It shares the lock.
  FileDescriptor open_for_reading() const;
  /// Bytes in it; -1 for what is not a regular file.
  off_t size() const;
  /// Cuts off what follows the first `size` bytes.
  void cut(off_t size);

 private:
  void open(const std::filesystem::path& path, Mode mode);
  /// Whether the path still leads to the open file, now that it is locked.
  bool lock(const std::filesystem::path& path, std::chrono::milliseconds patience);
  void drop_content(std::size_t bytes_to_come);
  /// Whether a folder has it: a stdout that was never in one is no removed file.
  bool has_name() const;
  [[noreturn]] void fail(const char* what, int error) const;

  std::string name_;
  std::string flag_;
  bool replaces_;
  bool begun_ = false;
  bool had_name_ = false;       // a regular file, when it was opened
  std::filesystem::path made_;  // where it was made here; empty else
  FileDescriptor file_;
};

}  // namespace zi
