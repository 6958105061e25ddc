#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "base/file_descriptor.h"

namespace zi {

/// A directory that appears with all of its files, or not at all: it is written as
/// <path>.partial, and renamed when it is complete. A writer that is killed leaves that behind; the
/// next one of the same path removes it. Throws IoError, with `full_disk` at the end of the message
/// where the disk has no room.
class NewDirectory {
 public:
  /// `path` is missing or an empty directory, else ConfigError. Throws IoError also where another
  /// writer is at it.
  NewDirectory(const std::filesystem::path& path, std::string full_disk);
  /// Removes what was not published.
  ~NewDirectory();
  NewDirectory(const NewDirectory&) = delete;
  NewDirectory& operator=(const NewDirectory&) = delete;

  /// A file in it that is written from its beginning to its end.
  class File {
   public:
    void write(std::span<const std::byte> bytes);
    void write(std::string_view text);
    /// Makes the bytes durable.
    void close();

   private:
    friend class NewDirectory;
    File(const NewDirectory& directory, std::string name);

    const NewDirectory& directory_;
    std::string name_;
    FileDescriptor file_;
  };
  /// Reserves `bytes` for it, where the file system can.
  File make(const std::string& name, std::uint64_t bytes) const;
  void make_folder(const std::string& name) const;

  /// Gives the directory its name, durably. All files are closed.
  void publish();

 private:
  void take();
  void remove_what_was_left() const;
  void remove();
  [[noreturn]] void fail(const std::string& name, const std::string& what, int error) const;

  std::filesystem::path path_;
  std::filesystem::path partial_;
  std::string full_disk_;
  FileDescriptor lock_;  // the open directory <path>.partial
  bool there_ = false;
};

}  // namespace zi
