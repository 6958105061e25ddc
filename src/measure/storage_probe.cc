#include "measure/storage_probe.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>

#include "base/system_error.h"
#include "measure/bare_rates.h"
#include "offload/block_reader_choice.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

/// A number of the table is left out when the blocks in flight alone would take this many times the
/// time that it may take.
constexpr double kMostPatience = 3;

/// The file, its name already taken away.
FileDescriptor open_unnamed(const std::filesystem::path& directory) {
  std::string name = (directory / ".zero-infer-limits-XXXXXX").string();
  FileDescriptor file(::mkostemp(name.data(), O_CLOEXEC));
  if (!file.is_open()) {
    throw IoError(system_error_text(directory.string(), "no file can be made there", errno) +
                  "; give --path a directory that can be written");
  }
  if (::unlink(name.c_str()) != 0) {
    throw IoError(system_error_text(name, "it cannot be removed", errno));
  }
  return file;
}

/// A quarter of what the storage has free, less where the size of a file is limited.
std::size_t room_for_file(int fd, const std::string& path) {
  struct statvfs info {};
  if (::fstatvfs(fd, &info) != 0) {
    throw IoError(system_error_text(path, "cannot ask for the free space", errno));
  }
  std::size_t room = static_cast<std::size_t>(info.f_bavail) * info.f_frsize / 4;
  struct rlimit limit {};
  // Exceeding it would raise a signal that ends the process.
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0) room = std::min<std::size_t>(room, limit.rlim_cur);
  return room;
}

/// What ends a series of blocks: their time is up.
class Deadline {
 public:
  explicit Deadline(double seconds) : until_(Clock::now() + as_clock(seconds)) {}
  bool passed() const { return Clock::now() >= until_; }

 private:
  using Clock = std::chrono::steady_clock;
  static Clock::duration as_clock(double seconds) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }
  Clock::time_point until_;
};

/// What is done before and after the timed blocks of each number.
struct Frame {
  std::function<void()> prepare = [] {};  // untimed
  std::function<void()> finish = [] {};   // timed
};

/// The rates of one direction.
std::vector<double> table_of(BlockReader& reader, const StorageEffort& effort,
                             std::size_t file_bytes, const Frame& frame) {
  std::vector<double> rates;
  // Continues from number to number: nothing is read again while a cache of the storage may hold
  // it.
  std::size_t position = 0;
  double best = 0;
  for (const std::size_t size : effort.sizes) {
    for (const int depth : effort.depths) {
      rates.push_back(0);
      const double in_flight = static_cast<double>(size) * depth;
      if (best > 0 && in_flight / best > kMostPatience * effort.seconds) continue;
      frame.prepare();
      const Deadline deadline(effort.seconds);
      const auto next = [&](std::size_t index) {
        if (index > 0 && deadline.passed()) return BlockRange{};
        if (position + size > file_bytes) position = 0;
        position += size;
        return BlockRange{position - size, size};
      };
      std::size_t moved = 0;
      const double seconds = wall_seconds([&] {
        moved = move_blocks(reader, static_cast<std::size_t>(depth), next);
        frame.finish();
      });
      rates.back() = static_cast<double>(moved) / seconds;
      best = std::max(best, rates.back());
    }
  }
  return rates;
}

}  // namespace

StorageProbe::StorageProbe(const std::filesystem::path& directory, const StorageEffort& effort)
    : path_(directory.string()), effort_(effort), file_(open_unnamed(directory)) {
  const std::size_t room = room_for_file(file_.get(), path_);
  if (room < effort_.least_bytes) {
    throw IoError(fmt::format(
        "{}: a file of {} is needed to measure it, at most {} may be taken (a quarter of the free "
        "space, or ulimit -f); make room or choose another --path",
        path_, format_memory(static_cast<double>(effort_.least_bytes)),
        format_memory(static_cast<double>(room))));
  }
  most_bytes_ = std::min(effort_.most_bytes, room) / kPageBytes * kPageBytes;
}

bool StorageProbe::enable_direct(const std::byte* page) const {
  const int flags = ::fcntl(file_.get(), F_GETFL);
  if (!enable_direct_reads(file_.get(), path_)) return false;
  if (::pwrite(file_.get(), page, kPageBytes, 0) >= 0 || errno != EINVAL) return true;
  ::fcntl(file_.get(), F_SETFL, flags);
  log_warning("O_DIRECT writes are refused for " + path_ + "; writes and reads are buffered");
  return false;
}

void StorageProbe::reserve_again() const {
  int result = ::ftruncate(file_.get(), 0);
  while (result == 0 && ::fallocate(file_.get(), 0, 0, static_cast<off_t>(most_bytes_)) != 0) {
    if (errno != EINTR) result = -1;
  }
  // Without reservation a full disk is found by a write.
  if (result != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
    throw IoError(system_error_text(
        path_, fmt::format("cannot reserve {}", format_memory(static_cast<double>(most_bytes_))),
        errno));
  }
}

std::size_t StorageProbe::fill(BlockReader& writer) const {
  const std::size_t block = effort_.sizes.back();
  const Deadline deadline(effort_.fill_seconds);
  return move_blocks(writer, static_cast<std::size_t>(effort_.depths.back()),
                     [&](std::size_t index) {
                       const bool end = (index + 1) * block > most_bytes_;
                       if (end || (index > 0 && deadline.passed())) return BlockRange{};
                       return BlockRange{index * block, block};
                     });
}

StorageTable StorageProbe::measure(Device& device) {
  const std::size_t block = effort_.sizes.back();
  const Buffer staging =
      device.allocate_pinned(static_cast<std::size_t>(effort_.depths.back()) * block);
  // What a storage could not compress.
  auto* const words = staging.as<std::uint64_t>();
  for (std::size_t i = 0; i < staging.bytes() / sizeof(std::uint64_t); ++i) words[i] = mix64(i);
  BlockSource file{file_.get(), path_, enable_direct(staging.data())};
  const Frame of_writes{
      [&] { reserve_again(); },
      [&] {
        if (::fdatasync(file.fd) == 0) return;
        throw IoError(system_error_text(path_, "cannot flush the file to the disk", errno));
      }};
  StorageTable table;
  std::size_t file_bytes = 0;
  {
    BlockSource target = file;
    target.write = true;
    const auto writer = make_block_reader(target, staging.span(), block, true);
    table.writes = table_of(*writer, effort_, most_bytes_, of_writes);
    // What was reserved and not written would be read without the disk.
    file_bytes = fill(*writer);
    of_writes.finish();
  }
  // Buffered reads would find in memory what was just written.
  if (!file.direct) ::posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED);
  const auto reader = make_block_reader(file, staging.span(), block, true);
  table.reads = table_of(*reader, effort_, file_bytes, {});
  table.method = reader->method() + (file.direct ? " + O_DIRECT" : ", buffered");
  return table;
}

}  // namespace zi
