#include "safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "base/json_file.h"
#include "base/system_error.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;

constexpr std::size_t kLengthBytes = 8;
constexpr std::size_t kMaxHeaderDepth = 4;  // {name: {shape: [..]}} needs three
constexpr std::string_view kMetadata = "__metadata__";

/// Bits of an element; none for a type that this build does not know (its tensors cannot be asked
/// for).
std::optional<std::uint64_t> bits_of(std::string_view dtype) {
  struct Known {
    std::string_view name;
    std::uint64_t bits;
  };
  static constexpr std::array kKnown = {
      Known{"BF16", 16},   Known{"F16", 16},    Known{"F32", 32},    Known{"F64", 64},
      Known{"BOOL", 8},    Known{"U8", 8},      Known{"I8", 8},      Known{"U16", 16},
      Known{"I16", 16},    Known{"U32", 32},    Known{"I32", 32},    Known{"U64", 64},
      Known{"I64", 64},    Known{"C64", 64},    Known{"F8_E4M3", 8}, Known{"F8_E5M2", 8},
      Known{"F8_E8M0", 8}, Known{"F6_E2M3", 6}, Known{"F6_E3M2", 6}, Known{"F4", 4}};
  for (const Known& known : kKnown) {
    if (known.name == dtype) return known.bits;
  }
  return std::nullopt;
}

/// Checks one entry of the header; `where` is file and tensor.
class EntryReader {
 public:
  EntryReader(const json& entry, std::string where) : entry_(entry), where_(std::move(where)) {}

  StoredTensor read(std::uint64_t data_begin) const {
    if (!entry_.is_object()) fail(fmt::format("an object was expected, not {}", show(entry_)));
    StoredTensor tensor;
    const json& dtype = member("dtype");
    if (!dtype.is_string()) fail(fmt::format("dtype is {}, not a string", show(dtype)));
    tensor.dtype = dtype.get<std::string>();
    for (const json& extent : array("shape")) {
      const std::uint64_t value = number(extent, "shape");
      tensor.shape.push_back(static_cast<std::int64_t>(value));
    }
    const json& offsets = array("data_offsets");
    if (offsets.size() != 2)
      fail(fmt::format("data_offsets is {}, not [begin, end]", show(offsets)));
    tensor.begin = number(offsets[0], "data_offsets");
    tensor.end = number(offsets[1], "data_offsets");
    if (tensor.begin > tensor.end) {
      fail(fmt::format("data_offsets [{}, {}] run backwards", tensor.begin, tensor.end));
    }
    check_size(tensor);
    // Both are below 2^63, so that the sums fit.
    tensor.begin += data_begin;
    tensor.end += data_begin;
    return tensor;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw CheckpointError(fmt::format("{}: {}; the file is damaged: fetch it again", where_, what));
  }
  static std::string show(const json& value) {
    return in_quotes(value.dump(-1, ' ', false, json::error_handler_t::replace));
  }
  const json& member(const char* key) const {
    const auto found = entry_.find(key);
    if (found == entry_.end()) fail(fmt::format("{} is missing", key));
    return *found;
  }
  const json& array(const char* key) const {
    const json& value = member(key);
    if (!value.is_array()) fail(fmt::format("{} is {}, not a list", key, show(value)));
    return value;
  }
  std::uint64_t number(const json& value, const char* key) const {
    constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kMost) {
      fail(fmt::format("{} holds {}, not a whole number from 0 to 2^63 - 1", key, show(value)));
    }
    return value.get<std::uint64_t>();
  }
  void check_size(const StoredTensor& tensor) const {
    const std::optional<std::uint64_t> bits = bits_of(tensor.dtype);
    std::uint64_t size = bits.value_or(1);
    for (std::int64_t extent : tensor.shape) {
      if (__builtin_mul_overflow(size, static_cast<std::uint64_t>(extent), &size)) {
        fail(fmt::format("shape [{}] of {} is larger than any memory",
                         fmt::join(tensor.shape, ", "), in_quotes(tensor.dtype)));
      }
    }
    const std::uint64_t bytes = tensor.end - tensor.begin;
    if (bits && (size % 8 != 0 || size / 8 != bytes)) {
      fail(fmt::format("shape [{}] of {} needs {} bytes, data_offsets [{}, {}] hold {}",
                       fmt::join(tensor.shape, ", "), tensor.dtype, (size + 7) / 8, tensor.begin,
                       tensor.end, bytes));
    }
  }

  const json& entry_;
  std::string where_;
};

[[noreturn]] void throw_truncated(const std::string& file, std::uint64_t promised,
                                  std::uint64_t has) {
  throw CheckpointError(
      fmt::format("{}: truncated: header promises {} bytes, the file has {}; fetch it again", file,
                  promised, has));
}

std::uint64_t nanoseconds(const timespec& time) {
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(time.tv_nsec);
}

/// The tensors must fill the file from the header to its end, without overlap or holes. Empty ones
/// may be anywhere.
void check_ranges(const SafetensorsHeader& header, std::uint64_t file_bytes,
                  const std::string& file) {
  std::vector<const std::pair<const std::string, StoredTensor>*> order;
  std::uint64_t promised = header.bytes;
  for (const auto& item : header.tensors) {
    promised = std::max(promised, item.second.end);
    if (item.second.begin < item.second.end) order.push_back(&item);
  }
  if (promised > file_bytes) throw_truncated(file, promised, file_bytes);
  std::sort(order.begin(), order.end(),
            [](const auto* a, const auto* b) { return a->second.begin < b->second.begin; });
  std::uint64_t end = header.bytes;
  std::string before = "the header";
  for (const auto* item : order) {
    const auto& [name, tensor] = *item;
    if (tensor.begin != end) {
      throw CheckpointError(fmt::format(
          "{}: tensor {} starts at byte {} of the file, but {} ends at byte {}: {}; the file is "
          "damaged: fetch it again",
          file, in_quotes(name), tensor.begin, before, end,
          tensor.begin < end ? "they overlap" : "the bytes between belong to no tensor"));
    }
    end = tensor.end;
    before = "tensor " + in_quotes(name);
  }
  if (end != file_bytes) {
    throw CheckpointError(fmt::format(
        "{}: header promises {} bytes, the file has {}: the rest belongs to no tensor; the "
        "file is damaged: fetch it again",
        file, end, file_bytes));
  }
}

}  // namespace

std::optional<DType> usable_dtype(std::string_view stored) {
  if (stored == "BF16") return DType::kBFloat16;
  if (stored == "F16") return DType::kFloat16;
  if (stored == "F32") return DType::kFloat32;
  return std::nullopt;
}

std::uint64_t safetensors_header_bytes(std::string_view start, std::uint64_t file_bytes,
                                       const std::string& file) {
  if (file_bytes < kLengthBytes || start.size() < kLengthBytes) {
    throw CheckpointError(fmt::format(
        "{}: truncated: the file has {} bytes, a safetensors file starts with a length of 8 bytes; "
        "fetch it again",
        file, file_bytes));
  }
  refuse_lfs_pointer(start, file);
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) {
    length = length << 8 | static_cast<unsigned char>(start[i]);
  }
  if (length > kMaxHeaderBytes) {
    throw CheckpointError(
        fmt::format("{}: it announces a header of {} bytes, the format allows {}; this is not a "
                    "safetensors file, or it is damaged",
                    file, length, kMaxHeaderBytes));
  }
  if (length > file_bytes - kLengthBytes) throw_truncated(file, kLengthBytes + length, file_bytes);
  return kLengthBytes + length;
}

SafetensorsHeader parse_safetensors_header(std::string_view start, std::uint64_t file_bytes,
                                           const std::string& file) {
  SafetensorsHeader header;
  header.bytes = safetensors_header_bytes(start, file_bytes, file);
  if (start.size() < header.bytes) throw_truncated(file, header.bytes, start.size());
  const std::string_view text = start.substr(kLengthBytes, header.bytes - kLengthBytes);
  const json root = parse_json_object(text, file, kMaxHeaderDepth);
  for (const auto& [name, entry] : root.items()) {
    if (name == kMetadata) {
      for (const auto& [key, value] : entry.items()) {
        if (value.is_string()) header.metadata.emplace(key, value.get<std::string>());
      }
      continue;
    }
    const EntryReader reader(entry, fmt::format("{}: tensor {}", file, in_quotes(name)));
    header.tensors.emplace(name, reader.read(header.bytes));
  }
  check_ranges(header, file_bytes, file);
  return header;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : path_(path.string()) {
  // Without O_NONBLOCK, opening a pipe of this name would wait for a writer; for a file it changes
  // nothing.
  file_ = FileDescriptor(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file_.is_open()) {
    const int error = errno;
    if (error == ENOENT) {
      throw CheckpointError(fmt::format("{} does not exist; fetch it again", path_));
    }
    throw IoError(fmt::format("{} cannot be opened: {}", path_, system_message(error)));
  }
  struct stat facts {};
  if (::fstat(file_.get(), &facts) != 0) {
    throw IoError(fmt::format("{} cannot be examined: {}", path_, system_message(errno)));
  }
  if (!S_ISREG(facts.st_mode)) throw CheckpointError(fmt::format("{} is not a file", path_));
  const auto file_bytes = static_cast<std::uint64_t>(facts.st_size);
  std::string start(std::min<std::uint64_t>(file_bytes, kLengthBytes), '\0');
  read(0, start.data(), start.size());
  start.resize(safetensors_header_bytes(start, file_bytes, path_));
  read(0, start.data(), start.size());
  header_ = parse_safetensors_header(start, file_bytes, path_);
  stamp_ = {file_bytes, nanoseconds(facts.st_mtim), nanoseconds(facts.st_ctim)};
  // Each rank needs only its own rows: reading ahead would read its neighbours' as well.
  (void)::posix_fadvise(file_.get(), 0, 0, POSIX_FADV_RANDOM);
  direct_.emplace(path_, file_.get(), file_bytes);
}

void SafetensorsFile::read(std::uint64_t offset, void* dst, std::size_t bytes) const {
  std::size_t done = 0;
  while (done < bytes) {
    const ssize_t got = ::pread(file_.get(), static_cast<char*>(dst) + done, bytes - done,
                                static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      throw IoError(fmt::format("{}: reading {} bytes at offset {} failed: {}", path_, bytes - done,
                                offset + done, system_message(errno)));
    }
    if (got == 0) {
      throw IoError(
          fmt::format("{}: the file ends at offset {}, {} bytes too early; it was changed while "
                      "in use",
                      path_, offset + done, bytes - done));
    }
    done += static_cast<std::size_t>(got);
  }
}

void SafetensorsFile::read_all(std::uint64_t offset, std::byte* dst, std::size_t bytes) const {
  if (bytes < kLargeBytes || !direct_->usable()) {
    if (bytes >= kLargeBytes) will_read(offset, bytes);
    read(offset, dst, bytes);
    return;
  }
  DirectFile::Block block;
  while (bytes > 0) {
    // Blocks end at pages.
    const std::size_t n = std::min(bytes, DirectFile::kMostBytes - offset % kPageBytes);
    const std::byte* const at = read_block(offset, n, dst, block);
    if (at != dst) std::memcpy(dst, at, n);
    offset += n;
    dst += n;
    bytes -= n;
  }
}

const std::byte* SafetensorsFile::read_block(std::uint64_t offset, std::size_t bytes, std::byte* to,
                                             DirectFile::Block& block) const {
  if (!direct_->is_cached(offset, bytes)) return direct_->read(offset, bytes, block).data();
  read(offset, to, bytes);
  return to;
}

void SafetensorsFile::will_read(std::uint64_t offset, std::uint64_t bytes) const {
  (void)::posix_fadvise(file_.get(), static_cast<off_t>(offset), static_cast<off_t>(bytes),
                        POSIX_FADV_WILLNEED);
}

}  // namespace zi
