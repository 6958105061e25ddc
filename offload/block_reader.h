#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace zi {

/// An open file that blocks are read from. It does not own `fd`, which must outlive the readers.
struct BlockSource {
  int fd = -1;
  std::string path;     // for messages
  bool direct = false;  // O_DIRECT: offsets, lengths and memory are multiples of 4096
  bool write = false;   // its readers write, from their slots to the file: for bare rates
};

/// Turns O_DIRECT on for an open file. Where the file system refuses it, at once or at the first
/// read, reads stay buffered, a warning says so, and the result is false.
bool enable_direct_reads(int fd, const std::string& path);

/// The bookkeeping of one read: counts what has arrived and decides whether to continue. A short
/// read is resumed where it stopped (with O_DIRECT at the last whole 4096 bytes), EINTR and EAGAIN
/// are tried again.
class BlockRead {
 public:
  enum class State { kActive, kDone, kFailed };

  BlockRead() = default;
  BlockRead(std::uint64_t offset, std::size_t bytes) : offset_(offset), bytes_(bytes) {}

  /// Takes the result of one attempt to read the rest: bytes read, 0 at the end of the file, or
  /// -errno.
  State account(std::int64_t result, bool direct);

  State state() const { return state_; }
  std::uint64_t next_offset() const { return offset_ + done_; }
  std::size_t done() const { return done_; }
  std::size_t remaining() const { return bytes_ - done_; }

  /// Throws the IoError of a failed read (or write): path, range, what happened. No effect on
  /// others.
  void throw_if_failed(const std::string& path, bool write = false) const;

 private:
  std::uint64_t offset_ = 0;
  std::size_t bytes_ = 0;
  std::size_t done_ = 0;
  int idle_attempts_ = 0;  // in a row, that brought nothing
  int error_ = 0;          // of a failed read; 0: the file ended
  State state_ = State::kActive;
};

/// Reads blocks of a file into the slots of a staging memory, several at once. One thread calls it,
/// the one that made it. The destructor waits for the reads in flight: the staging must outlive the
/// reader.
class BlockReader {
 public:
  virtual ~BlockReader() = default;

  /// Starts reading `bytes` (at most a slot) at `offset` into the slot, which no read in flight may
  /// use. Does not wait for the storage.
  virtual void start(std::size_t slot, std::uint64_t offset, std::size_t bytes) = 0;

  /// Blocks until the slot's read is complete; throws its IoError (path, range, reason) if it
  /// failed.
  virtual void wait(std::size_t slot) = 0;

  /// `io_uring`, `pread` or `pwrite`.
  virtual std::string method() const = 0;
};

/// Where a block lies in its file.
struct BlockRange {
  std::uint64_t offset = 0;
  std::size_t bytes = 0;
};

/// Moves the blocks next(0), next(1), .. until one is empty, `depth` of them in flight (in the
/// reader's first slots, taken in turn), and waits for all. Returns their bytes. Throws what `wait`
/// throws.
std::size_t move_blocks(BlockReader& reader, std::size_t depth,
                        const std::function<BlockRange(std::size_t)>& next);

}  // namespace zi
