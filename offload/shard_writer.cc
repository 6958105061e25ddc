#include "offload/shard_writer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <system_error>
#include <thread>

#include "base/file_descriptor.h"
#include "base/system_error.h"
#include "offload/block_reader.h"
#include "offload/shard_file.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

constexpr std::size_t kMostMemoryBytes = std::size_t{32} << 20;  // extents in hand
constexpr std::size_t kMostThreads = 8;                          // each reads, hashes and writes

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedBytes = std::unique_ptr<std::byte[], Free>;

AlignedBytes allocate_aligned(std::size_t bytes) {
  AlignedBytes memory(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, bytes)));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

/// A shard file that is there, with a header for this job.
struct ExistingFile {
  FileDescriptor file;
  ShardHeader header;
};

std::optional<ExistingFile> open_existing(const std::string& path, const ShardFileKey& key,
                                          std::size_t extent_bytes) {
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.is_open()) {
    if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
    throw IoError(system_error_text(path, "cannot open the shard file", errno));
  }
  ShardHeader header = read_shard_header(file.get(), path);
  check_shard_key(header, key, extent_bytes, path);
  return ExistingFile{std::move(file), std::move(header)};
}

/// Whether all of the units are in the file. Throws when one of them has another size there.
bool holds_all(const ShardHeader& header, const std::vector<int>& units,
               const std::vector<const ShardReader*>& readers, const std::string& path) {
  bool all = true;
  for (std::size_t i = 0; i < units.size(); ++i) {
    const ShardUnit* there = header.find(units[i]);
    if (there == nullptr) {
      all = false;
    } else if (there->bytes != readers[i]->shard_bytes()) {
      throw IoError(fmt::format(
          "shard file {} holds {} bytes of unit {}, this job needs {}; remove it, it is "
          "written anew at the next start",
          path, there->bytes, units[i], readers[i]->shard_bytes()));
    }
  }
  return all;
}

void make_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    throw IoError(system_error_text(folder.string(), "cannot create the directory for shard files",
                                    error.value()) +
                  "; choose a writable directory with --nvme-offload-path");
  }
}

/// The lock of the file's only writer, held as long as the descriptor is open. The lock file stays:
/// removing it would let two writers hold locks on two files of one name.
FileDescriptor lock_for_writing(const std::string& path) {
  const std::string name = path + ".lock";
  FileDescriptor lock(::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (!lock.is_open()) {
    throw IoError(system_error_text(name, "cannot write to the directory of shard files", errno) +
                  "; choose a writable directory with --nvme-offload-path");
  }
  int result = 0;
  do {
    result = ::flock(lock.get(), LOCK_EX | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno == EWOULDBLOCK) {
    throw IoError(
        fmt::format("shard file {} is being written by another job, which holds {}; wait for it "
                    "or use another directory",
                    path, name));
  }
  if (result != 0) {
    throw IoError(system_error_text(name, "cannot lock it", errno) +
                  "; use a local file system for --nvme-offload-path");
  }
  return lock;
}

/// Refuses before a byte is written what cannot fit.
void check_space(const std::filesystem::path& folder, std::uint64_t bytes) {
  struct statvfs info {};
  if (::statvfs(folder.c_str(), &info) != 0) {
    throw IoError(system_error_text(folder.string(), "cannot ask for the free space", errno));
  }
  const double free_bytes = static_cast<double>(info.f_bavail) * static_cast<double>(info.f_frsize);
  if (static_cast<double>(bytes) > free_bytes) {
    throw IoError(fmt::format(
        "the shard file needs {}, {} has {} free; make room or choose another "
        "directory with --nvme-offload-path",
        format_memory(static_cast<double>(bytes)), folder.string(), format_memory(free_bytes)));
  }
  struct rlimit limit {};
  // Going over it is a signal that ends the process.
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      bytes > limit.rlim_cur) {
    throw IoError(
        fmt::format("the shard file in {} needs {}, the limit of a file's size is {}; raise it "
                    "(ulimit -f)",
                    folder.string(), format_memory(static_cast<double>(bytes)),
                    format_memory(static_cast<double>(limit.rlim_cur))));
  }
}

/// The file under its temporary name; removed unless it is published.
class TemporaryFile {
 public:
  /// Call it under the lock: what lies under this name was left by a writer that was killed.
  explicit TemporaryFile(const std::string& final_path)
      : final_path_(final_path), path_(final_path + ".tmp") {
    if (::unlink(path_.c_str()) != 0 && errno != ENOENT)
      fail("cannot remove the stale file", errno);
  }
  ~TemporaryFile() {
    if (file_.is_open() && !published_) ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void create(std::uint64_t bytes) {
    file_ = FileDescriptor(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (!file_.is_open()) fail("cannot create the shard file", errno);
    int result = 0;
    do {
      result = ::fallocate(file_.get(), 0, 0, static_cast<off_t>(bytes));
    } while (result != 0 && errno == EINTR);
    // Without reservation a full disk is found later, by a write.
    if (result != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
      fail(fmt::format("cannot reserve {}", format_memory(static_cast<double>(bytes))), errno);
    }
    const int flags = ::fcntl(file_.get(), F_GETFL);
    direct_ = flags >= 0 && ::fcntl(file_.get(), F_SETFL, flags | O_DIRECT) == 0;
    if (!direct_) log_warning("O_DIRECT is refused for " + path_ + "; buffered writes are used");
  }

  /// Any thread; offset, memory and size are multiples of 4096.
  void write(std::uint64_t offset, std::span<const std::byte> bytes) {
    std::size_t done = 0;
    while (done < bytes.size()) {
      const bool was_direct = direct_;  // another thread may leave O_DIRECT meanwhile
      const ssize_t result = ::pwrite(file_.get(), bytes.data() + done, bytes.size() - done,
                                      static_cast<off_t>(offset + done));
      if (result > 0) {
        done += static_cast<std::size_t>(result);
        // A direct write goes on at a whole block: a part of one is written again.
        if (was_direct && done < bytes.size()) done = done / kPageBytes * kPageBytes;
      } else if (result == 0) {
        fail_write(offset + done, bytes.size() - done, ENOSPC);
      } else if (errno == EINVAL && was_direct) {
        stop_direct();  // some file systems take the flag and refuse the write
      } else if (errno != EINTR && errno != EAGAIN) {
        fail_write(offset + done, bytes.size() - done, errno);
      }
    }
  }

  /// Makes the bytes durable, then gives them their name, then makes the name durable.
  void publish() {
    if (::fsync(file_.get()) != 0) fail("cannot bring the shard file to the disk", errno);
    if (::rename(path_.c_str(), final_path_.c_str()) != 0) {
      fail("cannot rename it to " + final_path_, errno);
    }
    published_ = true;
    if (file_.close() != 0) fail("cannot close the shard file", errno);
    const std::string folder = std::filesystem::path(final_path_).parent_path().string();
    const FileDescriptor opened(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    // Some network file systems know no fsync of a directory.
    if (!opened.is_open() || (::fsync(opened.get()) != 0 && errno != EINVAL)) {
      throw IoError(system_error_text(folder, "cannot bring the directory to the disk", errno));
    }
  }

 private:
  void stop_direct() {
    const std::lock_guard lock(mutex_);
    if (!direct_) return;  // another thread was faster
    const int flags = ::fcntl(file_.get(), F_GETFL);
    if (flags < 0 || ::fcntl(file_.get(), F_SETFL, flags & ~O_DIRECT) != 0) {
      fail("cannot leave O_DIRECT", errno);
    }
    direct_ = false;
    log_warning("O_DIRECT writes are refused for " + path_ + "; buffered writes are used");
  }

  [[noreturn]] void fail_write(std::uint64_t offset, std::size_t bytes, int error) const {
    fail(fmt::format("cannot write {} bytes at offset {}", bytes, offset), error);
  }
  [[noreturn]] void fail(const std::string& what, int error) const {
    throw IoError(system_error_text(path_, what, error));
  }

  std::string final_path_;
  std::string path_;
  FileDescriptor file_;
  std::mutex mutex_;  // of leaving O_DIRECT
  std::atomic<bool> direct_ = false;
  bool published_ = false;
};

/// Fills the file: a few threads take extents in order, each makes one, hashes it and writes it.
class ShardWriter {
 public:
  ShardWriter(ShardHeader header, const std::vector<int>& units,
              const std::vector<const ShardReader*>& readers, const ExistingFile* old,
              const std::string& path, const std::function<void(std::size_t)>& progress)
      : header_(std::move(header)), old_(old), path_(path), progress_(progress) {
    for (std::size_t i = 0; i < header_.units.size(); ++i) {
      const ShardUnit& unit = header_.units[i];
      const auto at = std::find(units.begin(), units.end(), unit.unit);
      // Null: the unit comes out of the old file.
      const ShardReader* reader =
          at == units.end() ? nullptr : readers[static_cast<std::size_t>(at - units.begin())];
      for (std::size_t e = 0; e < header_.extent_count(unit); ++e) tasks_.push_back({i, e, reader});
    }
  }

  void write(TemporaryFile& file) {
    const std::size_t threads = std::clamp<std::size_t>(kMostMemoryBytes / header_.extent_bytes, 1,
                                                        std::min(kMostThreads, tasks_.size()));
    {
      std::vector<std::jthread> helpers;
      for (std::size_t i = 1; i < threads; ++i) {
        helpers.emplace_back([&] { work(file); });
      }
      work(file);
    }  // joins
    if (failure_) std::rethrow_exception(failure_);
    const AlignedBytes memory = allocate_aligned(header_.header_bytes);
    std::ranges::copy(header_.encode(), memory.get());
    file.write(0, {memory.get(), header_.header_bytes});
  }

 private:
  struct Task {
    std::size_t unit;  // index in the header's table
    std::size_t extent;
    const ShardReader* reader;
  };

  void work(TemporaryFile& file) {
    try {
      const AlignedBytes memory = allocate_aligned(header_.extent_bytes);
      for (std::size_t task = next_++; task < tasks_.size(); task = next_++) {
        const ShardUnit& unit = header_.units[tasks_[task].unit];
        const ShardExtent extent = header_.extent(unit, tasks_[task].extent);
        const std::span bytes(memory.get(), extent.bytes);
        fill(tasks_[task], unit, bytes);
        header_.checksums[unit.first_extent + tasks_[task].extent] = shard_checksum(bytes);
        file.write(extent.offset, bytes);
        const std::lock_guard lock(mutex_);
        if (progress_ && !failure_) progress_(bytes.size());
      }
    } catch (...) {
      next_ = tasks_.size();  // the others stop after the extent in hand
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }

  void fill(const Task& task, const ShardUnit& unit, std::span<std::byte> bytes) const {
    if (task.reader != nullptr) {
      task.reader->read(task.extent * header_.extent_bytes, bytes);
      return;
    }
    const ShardExtent extent = old_->header.extent(*old_->header.find(unit.unit), task.extent);
    BlockRead read(extent.offset, extent.bytes);
    while (read.state() == BlockRead::State::kActive) {
      const ssize_t result = ::pread(old_->file.get(), bytes.data() + read.done(), read.remaining(),
                                     static_cast<off_t>(read.next_offset()));
      read.account(result < 0 ? -errno : result, false);
    }
    read.throw_if_failed(path_);
    verify_extent(extent, unit.unit, bytes, path_);
  }

  ShardHeader header_;
  const ExistingFile* old_;
  const std::string& path_;
  const std::function<void(std::size_t)>& progress_;
  std::vector<Task> tasks_;
  std::atomic<std::size_t> next_ = 0;
  std::mutex mutex_;  // guards the failure and calls of progress
  std::exception_ptr failure_;
};

}  // namespace

std::filesystem::path prepare_shard_file(const std::filesystem::path& directory,
                                         const ShardFileKey& key, const std::vector<int>& units,
                                         const std::vector<const ShardReader*>& readers,
                                         const std::function<void(std::size_t)>& progress,
                                         std::size_t extent_bytes) {
  if (units.empty() || units.size() != readers.size()) {
    throw Error(fmt::format("a shard file of {} units with {} readers cannot be made", units.size(),
                            readers.size()));
  }
  check_extent_bytes(extent_bytes);
  const std::filesystem::path file = shard_file_path(directory, key);
  const std::string path = file.string();
  std::optional<ExistingFile> old = open_existing(path, key, extent_bytes);
  if (old && holds_all(old->header, units, readers, path)) return file;

  make_folder(file.parent_path());
  const FileDescriptor lock = lock_for_writing(path);
  // Another job may have finished the file between the look and the lock.
  old = open_existing(path, key, extent_bytes);
  if (old && holds_all(old->header, units, readers, path)) return file;

  std::vector<ShardSize> wanted;
  for (std::size_t i = 0; i < units.size(); ++i)
    wanted.push_back({units[i], readers[i]->shard_bytes()});
  if (old) {
    for (const ShardUnit& unit : old->header.units) {
      if (std::ranges::find(units, unit.unit) == units.end())
        wanted.push_back({unit.unit, unit.bytes});
    }
  }
  ShardHeader header = plan_shard_file(key, extent_bytes, std::move(wanted));
  const std::uint64_t bytes = header.file_bytes;
  TemporaryFile temporary(path);
  check_space(file.parent_path(), bytes);
  temporary.create(bytes);
  ShardWriter(std::move(header), units, readers, old ? &*old : nullptr, path, progress)
      .write(temporary);
  temporary.publish();
  return file;
}

}  // namespace zi
