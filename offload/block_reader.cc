#include "offload/block_reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/system_error.h"
#include "offload/io_uring_reader.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// Enough to keep a disk busy with reads of MiBs.
constexpr std::size_t kMostPreadThreads = 4;
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

const char* call_name(const BlockSource& source) { return source.write ? "pwrite" : "pread"; }

class PreadReader final : public BlockReader {
 public:
  PreadReader(const BlockSource& source, std::span<std::byte> staging, std::size_t slot_bytes,
              int threads, PreadFunction pread)
      : source_(source),
        staging_(staging),
        slot_bytes_(slot_bytes),
        pread_(std::move(pread)),
        reads_(staging.size() / slot_bytes) {
    try {
      for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
    } catch (const std::system_error& failure) {
      // Fewer threads are slower, none would wait for ever.
      if (threads_.empty()) {
        throw IoError(fmt::format("{}: no thread can be started to read it: {}", source_.path,
                                  failure.what()));
      }
    }
  }

  ~PreadReader() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    queued_.notify_all();
    threads_.clear();  // joins: nobody writes into the staging any more
  }

  void start(std::size_t slot, std::uint64_t offset, std::size_t bytes) override {
    {
      const std::lock_guard lock(mutex_);
      reads_.at(slot) = BlockRead(offset, bytes);
      queue_.push_back(slot);
    }
    queued_.notify_one();
  }

  void wait(std::size_t slot) override {
    std::unique_lock lock(mutex_);
    const BlockRead& read = reads_.at(slot);
    settled_.wait(lock, [&] { return read.state() != BlockRead::State::kActive; });
    read.throw_if_failed(source_.path, source_.write);
  }

  std::string method() const override { return call_name(source_); }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      queued_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      const std::size_t slot = queue_.front();
      queue_.pop_front();
      BlockRead read = reads_[slot];
      lock.unlock();
      while (read.state() == BlockRead::State::kActive) {
        const ssize_t result =
            pread_(source_.fd, staging_.data() + slot * slot_bytes_ + read.done(), read.remaining(),
                   static_cast<off_t>(read.next_offset()));
        read.account(result < 0 ? -errno : result, source_.direct);
      }
      lock.lock();
      reads_[slot] = read;
      settled_.notify_all();
    }
  }

  BlockSource source_;
  std::span<std::byte> staging_;
  std::size_t slot_bytes_;
  PreadFunction pread_;
  std::mutex mutex_;  // guards the next three
  std::vector<BlockRead> reads_;
  std::deque<std::size_t> queue_;
  bool stopping_ = false;
  std::condition_variable queued_;
  std::condition_variable settled_;
  std::vector<std::jthread> threads_;
};

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
    // A direct read starts at whole blocks only: a part of one is read again.
    const std::size_t usable = direct && end < bytes_ ? end / kPageBytes * kPageBytes : end;
    idle_attempts_ = usable > done_ ? 0 : idle_attempts_ + 1;
    done_ = usable;
    if (done_ == bytes_) {
      state_ = State::kDone;
    } else if (idle_attempts_ >= kMostIdleAttempts) {
      state_ = State::kFailed;  // always the same part of a block: the file ends in it
    }
  } else if ((result == -EINTR || result == -EAGAIN) && ++idle_attempts_ < kMostIdleAttempts) {
    // Nothing has happened yet: once more.
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
      fmt::format("{}: the file ends near byte {}, inside the {} that were to be read: it was "
                  "cut short; remove it, it is written anew at the next start",
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

std::unique_ptr<BlockReader> make_pread_reader(const BlockSource& source,
                                               std::span<std::byte> staging, std::size_t slot_bytes,
                                               int threads, PreadFunction pread) {
  if (!pread && source.write) pread = ::pwrite;
  if (!pread) pread = ::pread;
  return std::make_unique<PreadReader>(source, staging, slot_bytes, std::max(1, threads),
                                       std::move(pread));
}

std::unique_ptr<BlockReader> make_block_reader(const BlockSource& source,
                                               std::span<std::byte> staging, std::size_t slot_bytes,
                                               bool allow_io_uring) {
  const std::size_t threads = std::min(staging.size() / slot_bytes, kMostPreadThreads);
  if (allow_io_uring) {
    try {
      return make_io_uring_reader(source, staging, slot_bytes);
    } catch (const IoError& refusal) {
      log_warning(fmt::format("{}; {} with {} threads is used", refusal.what(), call_name(source),
                              threads));
    }
  }
  return make_pread_reader(source, staging, slot_bytes, static_cast<int>(threads));
}

}  // namespace zi
