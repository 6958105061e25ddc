#include "direct_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "base/system_error.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Pages of a range that are looked up: one in 128 KiB of the longest.
constexpr std::size_t kSamples = 8;

/// The kernel tells which pages are cached to those who could also write the file; to others it
/// says that all are (Linux 5.2).
bool kernel_tells(const std::string& path, const struct stat& facts) {
  return facts.st_uid == ::geteuid() || ::geteuid() == 0 ||
         ::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) == 0;
}

}  // namespace

DirectFile::Block::Block()
    // A range of the greatest length may touch an extra page at both ends.
    : memory_(
          static_cast<std::byte*>(std::aligned_alloc(kPageBytes, kMostBytes + 2 * kPageBytes))) {
  if (memory_ == nullptr) throw std::bad_alloc();
}

DirectFile::DirectFile(const std::string& path, int opened, std::uint64_t file_bytes)
    : path_(path) {
  struct stat first {
  }, second{};
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT));
  if (!file.is_open() || ::fstat(opened, &first) != 0 || ::fstat(file.get(), &second) != 0) {
    refusal_ = system_message(errno);
  } else if (first.st_dev != second.st_dev || first.st_ino != second.st_ino) {
    refusal_ = "another file has taken its name";
  } else if (Block block; ::pread(file.get(), block.data(), kPageBytes, 0) < 0) {
    refusal_ = system_message(errno);  // some file systems take the flag and refuse the read
  }
  if (!refusal_.empty()) return;
  file_ = std::move(file);
  if (file_bytes == 0 || !kernel_tells(path, first)) return;
  mapped_ = ::mmap(nullptr, file_bytes, PROT_READ, MAP_SHARED, opened, 0);
  if (mapped_ == MAP_FAILED) mapped_ = nullptr;
  if (mapped_ != nullptr) mapped_bytes_ = file_bytes;
}

DirectFile::~DirectFile() {
  if (mapped_ != nullptr) ::munmap(mapped_, mapped_bytes_);
}

DirectFile::DirectFile(DirectFile&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::move(other.file_)),
      refusal_(std::move(other.refusal_)),
      mapped_(std::exchange(other.mapped_, nullptr)),
      mapped_bytes_(other.mapped_bytes_) {}

bool DirectFile::is_cached(std::uint64_t offset, std::size_t bytes) const {
  if (mapped_ == nullptr || bytes == 0 || offset + bytes > mapped_bytes_) return false;
  for (std::size_t i = 0; i < kSamples; ++i) {
    const std::uint64_t page = (offset + i * (bytes - 1) / (kSamples - 1)) / kPageBytes;
    unsigned char resident = 0;
    if (::mincore(static_cast<std::byte*>(mapped_) + page * kPageBytes, 1, &resident) != 0 ||
        (resident & 1) == 0) {
      return false;
    }
  }
  return true;
}

std::span<const std::byte> DirectFile::read(std::uint64_t offset, std::size_t bytes,
                                            Block& block) const {
  if (bytes > kMostBytes) {
    throw Error(
        fmt::format("a direct read of {} bytes was asked for; {} is the most", bytes, kMostBytes));
  }
  const std::uint64_t begin = offset / kPageBytes * kPageBytes;
  const auto skipped = static_cast<std::size_t>(offset - begin);
  const std::size_t wanted = skipped + bytes;
  const std::size_t whole = align_up(wanted, kPageBytes);  // the file may end before
  std::size_t done = 0;
  while (done < wanted) {
    // A short read is resumed at a page, as every read here starts at one.
    done = done / kPageBytes * kPageBytes;
    const ssize_t got =
        ::pread(file_.get(), block.data() + done, whole - done, static_cast<off_t>(begin + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      throw IoError(fmt::format("{}: reading {} bytes at offset {} directly failed: {}", path_,
                                whole - done, begin + done, system_message(errno)));
    }
    const std::size_t end = done + static_cast<std::size_t>(got);
    if (end < wanted && static_cast<std::size_t>(got) < kPageBytes) {
      throw IoError(
          fmt::format("{}: the file ends at offset {}, {} bytes too early; it was changed while "
                      "in use",
                      path_, begin + end, wanted - end));
    }
    done = end;
  }
  return {block.data() + skipped, bytes};
}

}  // namespace zi
