#include "offload/shard_writer.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "base/file_descriptor.h"
#include "base/system_error.h"
#include "offload/block_reader.h"
#include "offload/shard_file.h"
#include "offload/shard_folder.h"
#include "offload/temporary_file.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

constexpr std::size_t kMostMemoryBytes = std::size_t{32} << 20;  // of extents being written
constexpr std::size_t kMostThreads = 8;  // each one reads, hashes and writes
constexpr std::chrono::milliseconds kLockPoll(50);
constexpr std::chrono::seconds kLockPatience(10);  // before a line says what is waited for

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedBytes = std::unique_ptr<std::byte[], Free>;

AlignedBytes allocate_aligned(std::size_t bytes) {
  AlignedBytes memory(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, bytes)));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

/// What is there under the name of this job's file.
struct Found {
  std::optional<OpenShardFile> file;
  bool complete = false;  // all units that the job needs are in it
};

Found find_for_job(const ShardFolder& folder, const std::string& name, const ShardFileKey& key,
                   std::size_t extent_bytes, std::span<const ShardSize> wanted) {
  Found found{.file = OpenShardFile::find(folder, name)};
  if (!found.file) return found;
  found.file->check_key(key, extent_bytes);
  found.complete = found.file->holds(wanted);
  return found;
}

/// Adds the units of the file that are not among those wanted.
void keep_units(const ShardHeader& header, std::vector<ShardSize>& wanted) {
  const std::size_t own = wanted.size();
  for (const ShardUnit& unit : header.units) {
    const auto end = wanted.begin() + static_cast<std::ptrdiff_t>(own);
    if (std::ranges::find(wanted.begin(), end, unit.unit, &ShardSize::unit) == end) {
      wanted.push_back({unit.unit, unit.bytes});
    }
  }
}

/// Refuses what cannot fit, before a byte is written.
void check_space(const ShardFolder& folder, std::uint64_t bytes, const std::string& full_disk) {
  struct statvfs info {};
  if (::fstatvfs(folder.fd(), &info) != 0) {
    throw IoError(system_error_text(folder.path(), "cannot ask for the free space", errno));
  }
  const double free_bytes = static_cast<double>(info.f_bavail) * static_cast<double>(info.f_frsize);
  if (static_cast<double>(bytes) > free_bytes) {
    throw IoError(fmt::format("the shard file needs {}, {} has {} free{}",
                              format_memory(static_cast<double>(bytes)), folder.path(),
                              format_memory(free_bytes), full_disk));
  }
  struct rlimit limit {};
  // Exceeding it would raise a signal that ends the process.
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      bytes > limit.rlim_cur) {
    throw IoError(
        fmt::format("the shard file in {} needs {}, the limit of a file's size is {}; raise it "
                    "(ulimit -f)",
                    folder.path(), format_memory(static_cast<double>(bytes)),
                    format_memory(static_cast<double>(limit.rlim_cur))));
  }
}

/// Fills the file: a few threads take extents in order, each makes one, hashes it and writes it.
class ShardWriter {
 public:
  ShardWriter(ShardHeader header, const std::vector<int>& units,
              const std::vector<const ShardReader*>& readers, const OpenShardFile* old,
              const std::function<void(std::size_t)>& progress)
      : header_(std::move(header)), old_(old), progress_(progress) {
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
      try {
        for (std::size_t i = 1; i < threads; ++i) helpers.emplace_back([&] { work(file); });
      } catch (const std::system_error&) {
        // No more threads are to be had: those that there are write all of it.
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
      next_ = tasks_.size();  // the others stop after the extent that they are writing
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
    read.throw_if_failed(old_->path);
    verify_extent(extent, unit.unit, bytes, old_->path);
  }

  ShardHeader header_;
  const OpenShardFile* old_;
  const std::function<void(std::size_t)>& progress_;
  std::vector<Task> tasks_;
  std::atomic<std::size_t> next_ = 0;
  std::mutex mutex_;  // guards the failure and calls of progress
  std::exception_ptr failure_;
};

}  // namespace

std::string full_disk_text(const std::string& others) {
  const std::string text = fmt::format("; make room or {}", kOtherDirectory);
  return others.empty() ? text : text + ". " + others;
}

std::uint64_t shard_bytes_to_write(const std::filesystem::path& directory, const ShardFileKey& key,
                                   const std::vector<ShardSize>& shards, std::size_t extent_bytes) {
  const std::filesystem::path path = shard_file_path(directory, key);
  std::vector<ShardSize> wanted = shards;
  if (const auto folder = ShardFolder::find(path.parent_path())) {
    const std::string name = path.filename().string();
    const Found found = find_for_job(*folder, name, key, extent_bytes, wanted);
    remove_left_behind(*folder, name);  // it has blocks that the new file needs
    if (found.complete) return 0;
    if (found.file) keep_units(found.file->header, wanted);
  }
  return plan_shard_file(key, extent_bytes, std::move(wanted)).file_bytes;
}

FreeSpace free_space(const std::filesystem::path& directory) {
  // The parent of what is still to be made: see check_shard_directory.
  const std::filesystem::path whole =
      directory.has_filename() ? directory : directory.parent_path();
  std::filesystem::path place = directory;
  if (::access(place.c_str(), F_OK) != 0) {
    place = whole.has_parent_path() ? whole.parent_path() : std::filesystem::path(".");
  }
  struct stat file {};
  struct statvfs info {};
  if (::stat(place.c_str(), &file) != 0 || ::statvfs(place.c_str(), &info) != 0) {
    throw IoError(system_error_text(place.string(), "cannot ask for the free space", errno));
  }
  return {static_cast<std::uint64_t>(file.st_dev),
          static_cast<std::uint64_t>(info.f_bavail) * static_cast<std::uint64_t>(info.f_frsize)};
}

std::filesystem::path prepare_shard_file(const std::filesystem::path& directory,
                                         const ShardFileKey& key, const std::vector<int>& units,
                                         const std::vector<const ShardReader*>& readers,
                                         const std::function<void(std::size_t)>& progress,
                                         std::size_t extent_bytes, OtherWriter other) {
  if (units.empty() || units.size() != readers.size()) {
    throw Error(fmt::format("a shard file of {} units with {} readers cannot be made", units.size(),
                            readers.size()));
  }
  check_extent_bytes(extent_bytes);
  std::vector<ShardSize> wanted;
  for (std::size_t i = 0; i < units.size(); ++i) {
    wanted.push_back({units[i], readers[i]->shard_bytes()});
  }
  const std::filesystem::path path = shard_file_path(directory, key);
  const std::string name = path.filename().string();
  const auto warn_of_directory = [&](const ShardFolder& folder) {
    const std::string warning = key.rank == 0 ? folder.warning_of_directory() : "";
    if (!warning.empty()) log_warning(warning);
  };
  if (const auto folder = ShardFolder::find(path.parent_path());
      folder && find_for_job(*folder, name, key, extent_bytes, wanted).complete) {
    warn_of_directory(*folder);
    remove_left_behind(*folder, name);
    return path;
  }

  const ShardFolder folder = ShardFolder::make(path.parent_path());
  warn_of_directory(folder);
  std::optional<FileDescriptor> lock = folder.lock(lock_name(name));
  const auto since = std::chrono::steady_clock::now();
  for (bool said = false; !lock && other == OtherWriter::kWait;) {
    const bool long_ago = std::chrono::steady_clock::now() - since > kLockPatience;
    if (long_ago && !std::exchange(said, true)) {
      log_warning(fmt::format("waiting for who writes shard file {} and holds {}", path.string(),
                              folder.path_of(lock_name(name))));
    }
    std::this_thread::sleep_for(kLockPoll);
    lock = folder.lock(lock_name(name));
  }
  if (!lock) {
    throw IoError(
        fmt::format("shard file {} is being written by another job, which holds {}; wait for it "
                    "or use another directory",
                    path.string(), folder.path_of(lock_name(name))));
  }
  // Another job may have finished the file between the look and the lock.
  const Found found = find_for_job(folder, name, key, extent_bytes, wanted);
  if (found.complete) return path;
  if (found.file) keep_units(found.file->header, wanted);

  const std::string others = other_shards_text(directory, key);
  if (key.rank == 0 && !others.empty()) log_info(others);
  const std::string full_disk = full_disk_text(others);
  ShardHeader header = plan_shard_file(key, extent_bytes, std::move(wanted));
  TemporaryFile file(folder, name, full_disk);
  check_space(folder, header.file_bytes, full_disk);
  file.reserve(header.file_bytes);
  ShardWriter(std::move(header), units, readers, found.file ? &*found.file : nullptr, progress)
      .write(file);
  file.publish();
  return path;
}

}  // namespace zi
