#include "bare_disk.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/file_descriptor.h"
#include "base/system_error.h"
#include "offload/block_reader_choice.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr std::uint64_t kPage = kPageBytes;
constexpr double kMostResident = 0.01;  // of a file, after it was evicted

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedBytes = std::unique_ptr<std::byte[], Free>;

AlignedBytes aligned(std::size_t bytes) {
  AlignedBytes memory(static_cast<std::byte*>(std::aligned_alloc(kPage, align_up(bytes, kPage))));
  if (memory == nullptr) throw std::bad_alloc();
  std::fill_n(memory.get(), bytes, std::byte{0});  // its pages are there
  return memory;
}

FileDescriptor open_file(const std::filesystem::path& path, int flags) {
  FileDescriptor file(::open(path.c_str(), flags | O_CLOEXEC, 0666));
  if (!file.is_open()) throw IoError(system_error_text(path.string(), "cannot open", errno));
  return file;
}

/// Ranges cut into blocks; `at` counts over all of them.
struct Block {
  std::size_t file;
  std::uint64_t offset;
  std::size_t bytes;
  std::uint64_t at;
};

std::vector<Block> blocks_of(const std::vector<FileRange>& ranges, std::size_t block_bytes) {
  std::vector<Block> blocks;
  std::uint64_t at = 0;
  for (std::size_t f = 0; f < ranges.size(); ++f) {
    const std::uint64_t end = ranges[f].offset + ranges[f].bytes;
    for (std::uint64_t offset = ranges[f].offset; offset < end; offset += block_bytes) {
      const auto bytes =
          static_cast<std::size_t>(std::min<std::uint64_t>(block_bytes, end - offset));
      blocks.push_back({f, offset, bytes, at});
      at += align_up(bytes, kPage);
    }
  }
  return blocks;
}

/// Seconds of `threads` threads that take the blocks in turn; rethrows the first failure.
double run_over(const std::vector<Block>& blocks, int threads, std::size_t block_bytes,
                const std::function<void(const Block&, std::byte*)>& work) {
  std::vector<AlignedBytes> memory;
  for (int i = 0; i < threads; ++i) memory.push_back(aligned(block_bytes));
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto start = std::chrono::steady_clock::now();
  {
    std::vector<std::jthread> workers;
    for (int i = 0; i < threads; ++i) {
      workers.emplace_back([&, i] {
        try {
          for (std::size_t b = next++; b < blocks.size(); b = next++) {
            work(blocks[b], memory[static_cast<std::size_t>(i)].get());
          }
        } catch (...) {
          next = blocks.size();
          const std::lock_guard lock(mutex);
          failure = std::current_exception();
        }
      });
    }
  }
  if (failure) std::rethrow_exception(failure);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Reads a block; a direct read asks for whole pages and gets what the file has of the last.
void read_block(const FileDescriptor& file, const FileRange& range, const Block& block,
                std::byte* memory, bool direct) {
  std::size_t done = 0;
  while (done < block.bytes) {
    const std::size_t wanted = direct ? align_up(block.bytes - done, kPage) : block.bytes - done;
    const ssize_t got =
        ::pread(file.get(), memory + done, wanted, static_cast<off_t>(block.offset + done));
    if (got <= 0)
      throw IoError(system_error_text(range.file.string(), "cannot read", got < 0 ? errno : EIO));
    done += static_cast<std::size_t>(got);
  }
}

double resident_share(const FileRange& range, const FileDescriptor& file) {
  void* const mapped = ::mmap(nullptr, range.bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (mapped == MAP_FAILED)
    throw IoError(system_error_text(range.file.string(), "cannot map", errno));
  std::vector<unsigned char> pages((range.bytes + kPage - 1) / kPage);
  const int result = ::mincore(mapped, range.bytes, pages.data());
  ::munmap(mapped, range.bytes);
  if (result != 0)
    throw IoError(system_error_text(range.file.string(), "cannot ask for its pages", errno));
  const auto resident = std::ranges::count_if(pages, [](unsigned char p) { return (p & 1) != 0; });
  return static_cast<double>(resident) / static_cast<double>(pages.size());
}

}  // namespace

std::vector<FileRange> checkpoint_ranges(const std::filesystem::path& directory) {
  std::vector<FileRange> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() == ".safetensors")
      files.push_back({entry.path(), 0, entry.file_size()});
  }
  if (files.empty())
    throw IoError(directory.string() +
                  " has no .safetensors files; make a checkpoint with make_checkpoint");
  std::ranges::sort(files, {}, &FileRange::file);
  return files;
}

std::uint64_t total_bytes(const std::vector<FileRange>& ranges) {
  std::uint64_t total = 0;
  for (const FileRange& range : ranges) total += range.bytes;
  return total;
}

std::vector<FileRange> share_of(const std::vector<FileRange>& ranges, int rank, int world) {
  const std::uint64_t total = total_bytes(ranges);
  const auto cut = [&](int i) {
    return total * static_cast<std::uint64_t>(i) / static_cast<std::uint64_t>(world);
  };
  const std::uint64_t begin = cut(rank), end = cut(rank + 1);
  std::vector<FileRange> share;
  std::uint64_t at = 0;
  for (const FileRange& range : ranges) {
    const std::uint64_t first = std::clamp(begin, at, at + range.bytes) - at;
    const std::uint64_t last = std::clamp(end, at, at + range.bytes) - at;
    at += range.bytes;
    if (first == last) continue;
    const std::uint64_t offset = (range.offset + first) / kPage * kPage;
    const std::uint64_t stop =
        std::min<std::uint64_t>(align_up(range.offset + last, kPage), range.offset + range.bytes);
    share.push_back({range.file, offset, stop - offset});
  }
  return share;
}

std::vector<FileRange> first_of(const std::vector<FileRange>& ranges, std::uint64_t bytes) {
  std::vector<FileRange> first;
  for (const FileRange& range : ranges) {
    if (bytes == 0) break;
    first.push_back({range.file, range.offset, std::min(range.bytes, bytes)});
    bytes -= first.back().bytes;
  }
  return first;
}

void evict(const std::vector<FileRange>& ranges) {
  for (const FileRange& range : ranges) {
    const FileDescriptor file = open_file(range.file, O_RDONLY);
    if (::fsync(file.get()) != 0)
      throw IoError(system_error_text(range.file.string(), "cannot sync", errno));
    (void)::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
    const double resident = resident_share(range, file);
    if (resident > kMostResident) {
      throw IoError(
          fmt::format("{}: {:.0f}% of it stays in the page cache; does another program use it?",
                      range.file.string(), 100 * resident));
    }
  }
}

void bring_into_cache(const std::vector<FileRange>& ranges) {
  (void)bare_cached_seconds(ranges, 2);
}

DiskUse disk_use() {
  DiskUse use;
  std::ifstream in("/proc/self/io");
  std::string key;
  for (std::uint64_t value = 0; in >> key >> value;) {
    if (key == "read_bytes:") use.read = value;
    if (key == "write_bytes:") use.written = value;
  }
  return use;
}

double bare_read_seconds(const std::vector<FileRange>& ranges, const BareOptions& options) {
  const auto depth = static_cast<std::size_t>(options.depth);
  const AlignedBytes staging = aligned(depth * options.block_bytes);
  double seconds = 0;
  for (const FileRange& range : ranges) {
    // A reader belongs to one file: the files follow each other, as they do in a load.
    const FileDescriptor file = open_file(range.file, O_RDONLY | O_DIRECT);
    const auto reader =
        make_block_reader({file.get(), range.file.string(), true},
                          {staging.get(), depth * options.block_bytes}, options.block_bytes, true);
    if (reader->method() != "io_uring")
      throw IoError("io_uring is refused here: there is no bare rate to compare with");
    // Direct reads take whole pages: the file's end inside one is left out.
    const std::vector<Block> blocks =
        blocks_of({{range.file, range.offset, range.bytes / kPage * kPage}}, options.block_bytes);
    const auto start = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < blocks.size() + depth; ++i) {
      if (i >= depth && i - depth < blocks.size()) reader->wait(i % depth);
      if (i < blocks.size()) reader->start(i % depth, blocks[i].offset, blocks[i].bytes);
    }
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return seconds;
}

double bare_copy_seconds(const std::vector<FileRange>& ranges, const std::filesystem::path& to,
                         const BareOptions& options) {
  constexpr std::size_t kBlock = std::size_t{4} << 20;
  std::vector<FileDescriptor> files;
  for (const FileRange& range : ranges) files.push_back(open_file(range.file, O_RDONLY | O_DIRECT));
  std::filesystem::remove(to);
  const std::vector<Block> blocks = blocks_of(ranges, kBlock);
  const auto start = std::chrono::steady_clock::now();
  const FileDescriptor target = open_file(to, O_WRONLY | O_CREAT | O_EXCL | O_DIRECT);
  const auto bytes = static_cast<off_t>(blocks.back().at + align_up(blocks.back().bytes, kPage));
  if (::fallocate(target.get(), 0, 0, bytes) != 0)
    throw IoError(system_error_text(to.string(), "cannot reserve its space", errno));
  (void)run_over(blocks, options.copiers, kBlock, [&](const Block& block, std::byte* memory) {
    read_block(files[block.file], ranges[block.file], block, memory, true);
    const std::size_t whole = align_up(block.bytes, kPage);
    if (::pwrite(target.get(), memory, whole, static_cast<off_t>(block.at)) !=
        static_cast<ssize_t>(whole)) {
      throw IoError(system_error_text(to.string(), "cannot write", errno));
    }
  });
  if (::fsync(target.get()) != 0)
    throw IoError(system_error_text(to.string(), "cannot sync", errno));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::filesystem::remove(to);
  return seconds;
}

double bare_cached_seconds(const std::vector<FileRange>& ranges, int threads) {
  constexpr std::size_t kBlock = std::size_t{1} << 20;
  std::vector<FileDescriptor> files;
  for (const FileRange& range : ranges) files.push_back(open_file(range.file, O_RDONLY));
  return run_over(blocks_of(ranges, kBlock), threads, kBlock,
                  [&](const Block& block, std::byte* memory) {
                    read_block(files[block.file], ranges[block.file], block, memory, false);
                  });
}

}  // namespace zi
