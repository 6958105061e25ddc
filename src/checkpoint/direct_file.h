#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>

#include "base/file_descriptor.h"

namespace zi {

/// Large reads of one file past the page cache (O_DIRECT). Through the cache, the kernel copies and
/// keeps every byte, which takes more of the cores than a fast disk leaves free, and pushes out
/// what others keep there. What the cache already holds is read from it, faster than from any disk:
/// see `is_cached`.
class DirectFile {
 public:
  /// Bytes that one read may ask for.
  static constexpr std::size_t kMostBytes = std::size_t{1} << 20;

  /// Memory for reads of one thread.
  class Block {
   public:
    Block();
    std::byte* data() const { return memory_.get(); }

   private:
    struct Free {
      void operator()(std::byte* memory) const { std::free(memory); }
    };
    std::unique_ptr<std::byte[], Free> memory_;
  };

  /// Opens the file of `path` a second time. `opened` is the descriptor of the first, of
  /// `file_bytes` bytes; it stays the caller's. Never throws for a refusal: see `refusal`.
  DirectFile(const std::string& path, int opened, std::uint64_t file_bytes);
  ~DirectFile();
  DirectFile(DirectFile&& other) noexcept;
  DirectFile& operator=(DirectFile&&) = delete;

  /// Whether direct reads can be used.
  bool usable() const { return file_.is_open(); }
  /// Why they cannot.
  const std::string& refusal() const { return refusal_; }

  /// Whether the page cache holds the range, judged by some of its pages. False where the kernel
  /// does not tell: it only does for files that the caller owns or may write.
  bool is_cached(std::uint64_t offset, std::size_t bytes) const;

  /// Reads [offset, offset + bytes), at most kMostBytes, and returns where in `block` they are. Any
  /// thread. Throws IoError with path and offset.
  std::span<const std::byte> read(std::uint64_t offset, std::size_t bytes, Block& block) const;

 private:
  std::string path_;
  FileDescriptor file_;
  std::string refusal_;
  void* mapped_ = nullptr;  // never touched: for asking which pages are in the cache
  std::uint64_t mapped_bytes_ = 0;
};

}  // namespace zi
