#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>

#include "base/file_descriptor.h"
#include "offload/shard_folder.h"

namespace zi {

/// A file that is written before it has its name. Until `publish` it has none at all (O_TMPFILE):
/// however its writer ends, the file system takes its blocks back. Where files cannot be made
/// without a name it is <name>.tmp; a writer that is killed leaves that, and the next one removes
/// it. Throws IoError.
class TemporaryFile {
 public:
  /// Makes the file, empty, for this user alone. Whoever calls it holds the lock of `name`, so that
  /// a <name>.tmp has no living writer: it is removed. `full_disk` ends the message when the disk
  /// has no room.
  TemporaryFile(const ShardFolder& folder, const std::string& name, std::string full_disk);
  /// Removes the file unless it was published.
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  /// Takes the blocks from the disk, where the file system can, and turns O_DIRECT on. Call it once
  /// before the first write.
  void reserve(std::uint64_t bytes);

  /// Any thread; offset, memory and size are multiples of 4096.
  void write(std::uint64_t offset, std::span<const std::byte> bytes);

  /// Makes the bytes durable, then gives them their name in place of whatever has it, at once, then
  /// makes the name durable.
  void publish();

 private:
  void make();
  int make_without_name();
  /// 0, or the errno.
  int link_as(const std::string& name, int fd) const;
  void remove();
  void give_name();
  void stop_direct();
  [[noreturn]] void fail(const std::string& what, int error) const;

  const ShardFolder& folder_;
  const std::string name_;
  const std::string temporary_name_;
  const std::string path_;  // for messages: of the file as it is to be
  const std::string full_disk_;
  FileDescriptor file_;
  bool named_ = false;  // it has its temporary name
  std::mutex mutex_;    // held while O_DIRECT is turned off
  std::atomic<bool> direct_ = false;
};

/// Removes what a writer of `name` that was killed has left, unless a writer holds the name's lock,
/// and says so. Warns of what cannot be removed.
void remove_left_behind(const ShardFolder& folder, const std::string& name);

/// The name of the lock that the writer of `name` holds.
std::string lock_name(const std::string& name);

}  // namespace zi
