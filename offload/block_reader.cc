#include "offload/block_reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/system_error.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// Attempts in a row without a byte before a read is given up.
constexpr int kMostIdleAttempts = 100;

std::string file_system_name(int fd) {
  struct statfs info {};
  if (::fstatfs(fd, &info) != 0) return "the file system";
  switch (static_cast<unsigned long>(info.f_type)) {
    case TMPFS_MAGIC:
      return "tmpfs";
    case RAMFS_MAGIC:
      return "ramfs";
    case OVERLAYFS_SUPER_MAGIC:
      return "overlayfs";
    case NFS_SUPER_MAGIC:
      return "nfs";
    case EXT4_SUPER_MAGIC:
      return "ext4";
    case BTRFS_SUPER_MAGIC:
      return "btrfs";
    case PROC_SUPER_MAGIC:
      return "proc";
    case 0x58465342:
      return "xfs";
    case 0x2fc12fc1:
      return "zfs";
    case 0x65735546:
      return "fuse";
    default:
      return fmt::format("the file system (type {:#x})", static_cast<unsigned long>(info.f_type));
  }
}

}  // namespace

bool enable_direct_reads(int fd, const std::string& path) {
  const int flags = ::fcntl(fd, F_GETFL);
  bool refused = flags < 0 || ::fcntl(fd, F_SETFL, flags | O_DIRECT) != 0;
  if (!refused) {
    // Some file systems take the flag and refuse the read.
    alignas(kPageBytes) std::array<std::byte, kPageBytes> block;
    if (::pread(fd, block.data(), block.size(), 0) < 0 && errno == EINVAL) {
      refused = ::fcntl(fd, F_SETFL, flags) == 0;
    }
  }
  if (refused) {
    log_warning(fmt::format("O_DIRECT is refused by {} for {}; buffered reads are used",
                            file_system_name(fd), path));
  }
  return !refused;
}

BlockRead::State BlockRead::account(std::int64_t result, bool direct) {
  if (result > 0) {
    const std::size_t end = done_ + std::min(static_cast<std::size_t>(result), remaining());
    // A direct read can only start at a whole block: a part of one is read again.
    const std::size_t usable = direct && end < bytes_ ? end / kPageBytes * kPageBytes : end;
    idle_attempts_ = usable > done_ ? 0 : idle_attempts_ + 1;
    done_ = usable;
    if (done_ == bytes_) {
      state_ = State::kDone;
    } else if (idle_attempts_ >= kMostIdleAttempts) {
      state_ = State::kFailed;  // always the same part of a block: the file ends in it
    }
  } else if ((result == -EINTR || result == -EAGAIN) && ++idle_attempts_ < kMostIdleAttempts) {
    // Nothing has been read yet: try again.
  } else {
    error_ = static_cast<int>(-result);
    state_ = State::kFailed;
  }
  return state_;
}

void BlockRead::throw_if_failed(const std::string& path, bool write) const {
  if (state_ != State::kFailed) return;
  const std::string range = fmt::format("{} bytes at offset {}", bytes_, offset_);
  if (write) {
    throw IoError(system_error_text(path, "cannot write " + range, error_ != 0 ? error_ : ENOSPC));
  }
  if (error_ != 0) throw IoError(system_error_text(path, "cannot read " + range, error_));
  throw IoError(
      fmt::format("{}: the file ends near byte {}, inside the {} to be read: it was cut short; "
                  "remove it, and the next start writes it again",
                  path, next_offset(), range));
}

std::size_t move_blocks(BlockReader& reader, std::size_t depth,
                        const std::function<BlockRange(std::size_t)>& next) {
  std::size_t bytes = 0;
  std::size_t started = 0;
  std::size_t finished = 0;
  for (bool more = true; more || finished < started;) {
    if (!more || started - finished == depth) {
      reader.wait(finished++ % depth);
      continue;
    }
    const BlockRange block = next(started);
    more = block.bytes > 0;
    if (more) reader.start(started++ % depth, block.offset, block.bytes);
    bytes += block.bytes;
  }
  return bytes;
}

}  // namespace zi
