#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "direct_file.h"
#include "zero_infer/dtype.h"

namespace zi {

/// One tensor of a safetensors file.
struct StoredTensor {
  std::string dtype;  // as written: `BF16`, `F16`, `F32`; others may be there and cannot be used
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  // bytes from the start of the file
  std::uint64_t end = 0;
};

/// The type of elements of a safetensors file; none for those that cannot be used.
std::optional<DType> usable_dtype(std::string_view stored);

/// What the header of a file says, checked against the file's size.
struct SafetensorsHeader {
  std::uint64_t bytes = 0;  // length word and JSON: the tensors' bytes start here
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;  // the texts of `__metadata__`
};

/// Longest JSON header that is read, as in the reference implementation.
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

/// Reads the length word at the start of a file of `file_bytes`
/// (https://github.com/huggingface/safetensors#format) and returns the bytes of word and JSON
/// together. `start` holds up to 8 first bytes of the file. `file` is for messages. Throws
/// CheckpointError.
std::uint64_t safetensors_header_bytes(std::string_view start, std::uint64_t file_bytes,
                                       const std::string& file);

/// Reads and checks a whole header. `start` holds the file's first safetensors_header_bytes bytes.
/// A pure function of its arguments. Throws CheckpointError naming file, tensor and values: not
/// JSON, repeated names, sizes that do not match shape and type, overflow, offsets outside the
/// file, tensors that overlap, bytes that belong to none, a file shorter or longer than promised.
SafetensorsHeader parse_safetensors_header(std::string_view start, std::uint64_t file_bytes,
                                           const std::string& file);

/// What the file system says about a file. It changes with nearly all that could change the file's
/// bytes, and with things that do not: a copy, a download, a restore, `touch`, and for ctime also
/// `chmod`, `chown` and a new hard link.
struct FileStamp {
  std::uint64_t bytes = 0;
  std::uint64_t mtime_ns = 0;  // since 1970, modulo 2^64: any time can be set
  std::uint64_t ctime_ns = 0;
  bool operator==(const FileStamp&) const = default;
};

/// Ranges of this size and more are read past the page cache; where that is refused, the kernel is
/// told of the whole range before its parts are read.
inline constexpr std::size_t kLargeBytes = std::size_t{128} << 10;

/// An open safetensors file with a checked header.
class SafetensorsFile {
 public:
  /// Throws CheckpointError (missing, damaged) or IoError (cannot be opened or read).
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::string& path() const { return path_; }
  const SafetensorsHeader& header() const { return header_; }

  /// Reads exactly [offset, offset + bytes) of the file. Any thread. Throws IoError with path and
  /// offset.
  void read(std::uint64_t offset, void* dst, std::size_t bytes) const;
  /// The same, and large ranges past the page cache, unless it holds their bytes.
  void read_all(std::uint64_t offset, std::byte* dst, std::size_t bytes) const;
  /// Reads at most DirectFile::kMostBytes: into `to` from the page cache if that holds them, else
  /// into the block past it, where direct reads can be used. Returns where they are. Throws as
  /// `read`.
  const std::byte* read_block(std::uint64_t offset, std::size_t bytes, std::byte* to,
                              DirectFile::Block& block) const;
  /// Tells the kernel that the range will be read next. A hint: it cannot fail.
  void will_read(std::uint64_t offset, std::uint64_t bytes) const;

  /// Reads past the page cache, where the file system has them.
  const DirectFile& direct() const { return *direct_; }

  /// Of the moment when the file was opened.
  const FileStamp& stamp() const { return stamp_; }

 private:
  std::string path_;
  FileDescriptor file_;
  SafetensorsHeader header_;
  FileStamp stamp_;
  std::optional<DirectFile> direct_;  // there as soon as the file is open
};

}  // namespace zi
