#include "offload/shard_header.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "base/system_error.h"
#include "offload/block_reader.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr std::string_view kMagic = "ZISHARD\n";
constexpr std::uint32_t kVersion = 2;
/// Of files whose rows are padded to 32 bytes, and were to 16 in version 2.
constexpr std::uint32_t kPaddedVersion = 3;
constexpr std::uint32_t kByteOrder = std::endian::native == std::endian::little ? 1 : 2;
constexpr std::size_t kFixedBytes = 80;
constexpr std::size_t kUnitBytes = 4 + 8 + 8;
constexpr std::size_t kChecksumBytes = 8;
/// Enough for tables of 8 million extents, which is 34 TB: a damaged header cannot make us take
/// more memory.
constexpr std::size_t kMostHeaderBytes = std::size_t{64} << 20;
constexpr std::size_t kMostNameBytes = 1024;
constexpr std::uint64_t kMostFileBytes = std::uint64_t{1} << 62;

class Encoder {
 public:
  explicit Encoder(std::size_t bytes) : bytes_(bytes) {}
  template <typename T>
  void put(T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      bytes_[at_++] = static_cast<std::byte>(static_cast<std::uint64_t>(value) >> (8 * i));
    }
  }
  void put_text(std::string_view text) {
    std::memcpy(bytes_.data() + at_, text.data(), text.size());
    at_ += text.size();
  }
  void seek(std::size_t at) { at_ = at; }
  std::span<const std::byte> before(std::size_t end) const { return std::span(bytes_).first(end); }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
  std::size_t at_ = 0;
};

/// Reads fields one after the other; reading past the end means a damaged header.
class Decoder {
 public:
  Decoder(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}
  template <typename T>
  T get() {
    T value = 0;
    for (const std::byte b : take(sizeof(T))) {
      value = static_cast<T>(value | std::to_integer<T>(b) << shift_);
      shift_ += 8;
    }
    shift_ = 0;
    return value;
  }
  std::string get_text(std::size_t bytes) {
    const auto text = take(bytes);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }
  std::size_t left() const { return bytes_.size() - at_; }
  bool rest_is_zero() const {
    return std::ranges::all_of(bytes_.subspan(at_), [](std::byte b) { return b == std::byte{0}; });
  }
  void require(bool condition, std::string_view what) const {
    if (condition) return;
    throw IoError(fmt::format("{}: the header of the shard file is damaged ({}); {}", path_, what,
                              kWrittenAgain));
  }

 private:
  std::span<const std::byte> take(std::size_t bytes) {
    require(bytes <= left(), "its tables run over its end");
    at_ += bytes;
    return bytes_.subspan(at_ - bytes, bytes);
  }

  std::span<const std::byte> bytes_;
  const std::string& path_;
  std::size_t at_ = 0;
  int shift_ = 0;
};

std::size_t extents_of(std::size_t bytes, std::size_t extent_bytes) {
  return bytes / extent_bytes + (bytes % extent_bytes != 0 ? 1 : 0);
}

std::size_t header_bytes_of(std::size_t name_bytes, std::size_t units, std::size_t extents) {
  return align_up(
      kFixedBytes + name_bytes + units * kUnitBytes + extents * kChecksumBytes + kChecksumBytes,
      kPageBytes);
}

/// Fills `dst` from the start of the file; false when the file is shorter.
bool read_start(int fd, const std::string& path, std::span<std::byte> dst) {
  BlockRead read(0, dst.size());
  while (read.state() == BlockRead::State::kActive) {
    const ssize_t result = ::pread(fd, dst.data() + read.done(), read.remaining(),
                                   static_cast<off_t>(read.next_offset()));
    if (result == 0) return false;
    read.account(result < 0 ? -errno : result, false);
  }
  read.throw_if_failed(path);
  return true;
}

std::uint32_t version_of(const WeightFormat& format) {
  return format.packed() && format.scale != ScaleType::kFloat8 ? kPaddedVersion : kVersion;
}

WeightFormat decode_format(Decoder& in) {
  WeightFormat format;
  const auto kind = in.get<std::uint8_t>();
  const auto dtype = in.get<std::uint8_t>();
  const auto scale = in.get<std::uint8_t>();
  const auto zeros = in.get<std::uint8_t>();
  const auto group = in.get<std::uint32_t>();
  in.require(kind <= static_cast<std::uint8_t>(WeightFormat::Kind::kFloat8) &&
                 dtype <= static_cast<std::uint8_t>(DType::kBFloat16) &&
                 scale <= static_cast<std::uint8_t>(ScaleType::kFloat8) && zeros <= 1 &&
                 group <= 1u << 20 && group % 16 == 0 &&
                 (kind != static_cast<std::uint8_t>(WeightFormat::Kind::kElements) ||
                  (scale == 0 && zeros == 0 && group == 0)) &&
                 (kind != static_cast<std::uint8_t>(WeightFormat::Kind::kFloat8) ||
                  (scale != static_cast<std::uint8_t>(ScaleType::kFloat8) && zeros == 0)),
             "format of the weights");
  format.kind = static_cast<WeightFormat::Kind>(kind);
  format.dtype = static_cast<DType>(dtype);
  format.scale = static_cast<ScaleType>(scale);
  format.zeros = zeros == 1;
  format.group = static_cast<std::int32_t>(group);
  return format;
}

/// The fields after version and byte order, whose checksum has been compared.
ShardHeader decode(Decoder in, std::size_t header_bytes, std::uint64_t file_bytes) {
  ShardHeader header;
  header.header_bytes = header_bytes;
  header.file_bytes = file_bytes;
  header.extent_bytes = in.get<std::uint64_t>();
  in.require(header.extent_bytes >= kPageBytes && header.extent_bytes <= kMostExtentBytes &&
                 header.extent_bytes % kPageBytes == 0,
             "extent size");
  header.key.model_identity = in.get<std::uint64_t>();
  const auto world = in.get<std::uint32_t>();
  const auto rank = in.get<std::uint32_t>();
  in.require(world >= 1 && world <= 1u << 30 && rank < world, "world and rank");
  header.key.world = static_cast<int>(world);
  header.key.rank = static_cast<int>(rank);
  header.key.format = decode_format(in);
  const auto units = in.get<std::uint32_t>();
  const auto extents = in.get<std::uint64_t>();
  const auto name_bytes = in.get<std::uint32_t>();
  in.require(name_bytes <= kMostNameBytes, "name");
  header.key.model_name = in.get_text(name_bytes);

  in.require(units >= 1 && units <= in.left() / kUnitBytes, "number of units");
  in.require(extents <= in.left() / kChecksumBytes, "number of extents");
  in.require(header_bytes == header_bytes_of(name_bytes, units, extents), "header size");
  header.units.reserve(units);
  header.checksums.reserve(extents);
  std::uint64_t end = header_bytes;  // shards follow each other without gaps
  for (std::uint32_t i = 0; i < units; ++i) {
    ShardUnit unit;
    const auto number = in.get<std::uint32_t>();
    in.require(number <= 1u << 30, "number of a unit");
    unit.unit = static_cast<int>(number);
    in.require(i == 0 || unit.unit > header.units.back().unit, "order of the units");
    unit.bytes = in.get<std::uint64_t>();
    unit.offset = in.get<std::uint64_t>();
    in.require(unit.offset == end && unit.bytes > 0 && unit.bytes % kPageBytes == 0 &&
                   unit.bytes <= file_bytes - end,
               "place of a shard");
    end += unit.bytes;
    unit.first_extent = header.checksums.size();
    const std::size_t count = extents_of(unit.bytes, header.extent_bytes);
    in.require(count <= extents - header.checksums.size(), "number of extents");
    header.checksums.resize(header.checksums.size() + count);
    header.units.push_back(unit);
  }
  in.require(end == file_bytes, "sum of the shards");
  in.require(header.checksums.size() == extents, "number of extents");
  for (std::uint64_t& checksum : header.checksums) checksum = in.get<std::uint64_t>();
  in.require(in.rest_is_zero(), "what follows its tables");
  return header;
}

}  // namespace

const ShardUnit* ShardHeader::find(int unit) const {
  const auto found =
      std::lower_bound(units.begin(), units.end(), unit,
                       [](const ShardUnit& u, int wanted) { return u.unit < wanted; });
  return found != units.end() && found->unit == unit ? &*found : nullptr;
}

std::size_t ShardHeader::extent_count(const ShardUnit& unit) const {
  return extents_of(unit.bytes, extent_bytes);
}

ShardExtent ShardHeader::extent(const ShardUnit& unit, std::size_t index) const {
  const std::size_t begin = index * extent_bytes;
  return {unit.offset + begin, std::min(extent_bytes, unit.bytes - begin),
          checksums.at(unit.first_extent + index)};
}

std::vector<std::byte> ShardHeader::encode() const {
  Encoder out(header_bytes);
  out.put_text(kMagic);
  out.put(version_of(key.format));
  out.put(kByteOrder);
  out.put(std::uint64_t{header_bytes});
  out.put(file_bytes);
  out.put(std::uint64_t{extent_bytes});
  out.put(key.model_identity);
  out.put(static_cast<std::uint32_t>(key.world));
  out.put(static_cast<std::uint32_t>(key.rank));
  out.put(static_cast<std::uint8_t>(key.format.kind));
  out.put(static_cast<std::uint8_t>(key.format.dtype));
  out.put(static_cast<std::uint8_t>(key.format.scale));
  out.put(static_cast<std::uint8_t>(key.format.zeros ? 1 : 0));
  out.put(static_cast<std::uint32_t>(key.format.group));
  out.put(static_cast<std::uint32_t>(units.size()));
  out.put(std::uint64_t{checksums.size()});
  out.put(static_cast<std::uint32_t>(key.model_name.size()));
  out.put_text(key.model_name);
  for (const ShardUnit& unit : units) {
    out.put(static_cast<std::uint32_t>(unit.unit));
    out.put(std::uint64_t{unit.bytes});
    out.put(unit.offset);
  }
  for (const std::uint64_t checksum : checksums) out.put(checksum);
  out.seek(header_bytes - kChecksumBytes);
  out.put(shard_checksum(out.before(header_bytes - kChecksumBytes)));
  return out.take();
}

ShardHeader plan_shard_file(const ShardFileKey& key, std::size_t extent_bytes,
                            std::vector<ShardSize> shards) {
  check_extent_bytes(extent_bytes);
  std::ranges::sort(shards, {}, &ShardSize::unit);
  ShardHeader header;
  header.key = key;
  header.key.model_name = key.model_name.substr(0, kMostNameBytes);
  header.extent_bytes = extent_bytes;
  std::size_t extents = 0;
  for (const auto& [unit, bytes] : shards) {
    if (unit < 0 || bytes == 0 || bytes % kPageBytes != 0) {
      throw Error(fmt::format(
          "unit {} with a shard of {} bytes cannot be laid out; use a multiple of {} bytes", unit,
          bytes, kPageBytes));
    }
    if (!header.units.empty() && header.units.back().unit == unit) {
      throw Error(fmt::format("unit {} is to be written twice to one shard file", unit));
    }
    header.units.push_back({unit, bytes, 0, extents});
    extents += extents_of(bytes, extent_bytes);
  }
  header.header_bytes = header_bytes_of(header.key.model_name.size(), header.units.size(), extents);
  if (header.header_bytes > kMostHeaderBytes) {
    throw Error(fmt::format("{} extents of {} bytes are too many for one shard file", extents,
                            extent_bytes));
  }
  header.checksums.resize(extents);
  header.file_bytes = header.header_bytes;
  for (ShardUnit& unit : header.units) {
    unit.offset = header.file_bytes;
    header.file_bytes += unit.bytes;
  }
  return header;
}

ShardHeader read_shard_header(int fd, const std::string& path) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) throw IoError(system_error_text(path, "cannot stat it", errno));
  const auto size = static_cast<std::uint64_t>(info.st_size);
  std::vector<std::byte> bytes(kFixedBytes);
  const bool whole_start = S_ISREG(info.st_mode) && read_start(fd, path, bytes);
  const auto start_of = [&](std::string_view text, std::size_t most) {
    return std::memcmp(bytes.data(), text.data(), std::min(most, text.size())) == 0;
  };
  // What is left of one: nothing, the first bytes, or zeros, as file systems leave after a crash.
  if (S_ISREG(info.st_mode) && size < kFixedBytes && start_of(kMagic, size)) {
    throw IoError(size == 0
                      ? fmt::format("{}: the shard file is empty; {}", path, kWrittenAgain)
                      : fmt::format("{}: the shard file is cut short: {} bytes are left of it; {}",
                                    path, size, kWrittenAgain));
  }
  if (S_ISREG(info.st_mode) && start_of(std::string(kMagic.size(), '\0'), size)) {
    throw IoError(fmt::format("{}: the shard file is damaged, it begins with zeros; {}", path,
                              kWrittenAgain));
  }
  if (!whole_start || !start_of(kMagic, kMagic.size())) {
    throw IoError(path + " is not a shard file; move it away or use another directory");
  }
  const std::span<const std::byte> fixed = bytes;
  Decoder start(fixed.subspan(kMagic.size()), path);
  const auto version = start.get<std::uint32_t>();
  const auto refuse_version = [&](std::uint32_t wanted) {
    throw IoError(fmt::format(
        "shard file {} has version {} of the format, this program writes version {}; {}", path,
        version, wanted, kWrittenAgain));
  };
  if (version != kVersion && version != kPaddedVersion) refuse_version(kPaddedVersion);
  if (start.get<std::uint32_t>() != kByteOrder) {
    throw IoError(
        fmt::format("shard file {} was written on a machine with the other byte order; {}", path,
                    kWrittenAgain));
  }
  const auto header_bytes = start.get<std::uint64_t>();
  start.require(header_bytes >= kPageBytes && header_bytes <= kMostHeaderBytes &&
                    header_bytes % kPageBytes == 0,
                "header size");
  if (header_bytes > size) {
    throw IoError(
        fmt::format("{}: the shard file is cut short: {} bytes, its header alone has {}; {}", path,
                    size, header_bytes, kWrittenAgain));
  }
  bytes.resize(header_bytes);
  if (!read_start(fd, path, bytes)) {
    throw IoError(
        fmt::format("{}: the shard file was cut short just now; {}", path, kWrittenAgain));
  }
  const std::span<const std::byte> whole = bytes;
  const auto own = whole.first(header_bytes - kChecksumBytes);
  Decoder end(whole.last(kChecksumBytes), path);
  end.require(end.get<std::uint64_t>() == shard_checksum(own), "its checksum differs");

  Decoder fields(own.subspan(kMagic.size() + 4 + 4 + 8), path);
  const auto file_bytes = fields.get<std::uint64_t>();
  fields.require(file_bytes >= header_bytes && file_bytes <= kMostFileBytes, "file size");
  if (file_bytes != size) {
    throw IoError(fmt::format("{}: the shard file has {} bytes, its header says {}: it is {}; {}",
                              path, size, file_bytes, size < file_bytes ? "cut short" : "damaged",
                              kWrittenAgain));
  }
  ShardHeader header = decode(fields, header_bytes, file_bytes);
  const std::uint32_t wanted = version_of(header.key.format);
  if (version != wanted) refuse_version(wanted);
  return header;
}

void check_extent_bytes(std::size_t extent_bytes) {
  if (extent_bytes < kPageBytes || extent_bytes > kMostExtentBytes ||
      extent_bytes % kPageBytes != 0) {
    throw Error(fmt::format("extents of {} bytes cannot be used; use a multiple of {} up to {}",
                            extent_bytes, kPageBytes, kMostExtentBytes));
  }
}

std::uint64_t shard_checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

void verify_extent(const ShardExtent& extent, int unit, std::span<const std::byte> bytes,
                   const std::string& path) {
  const std::uint64_t read = shard_checksum(bytes);
  if (read == extent.checksum) return;
  throw IoError(fmt::format(
      "{}: checksum of unit {}, bytes {}..{} differs (stored {:016x}, read {:016x}); the "
      "file is damaged: {}",
      path, unit, extent.offset, extent.offset + extent.bytes - 1, extent.checksum, read,
      kWrittenAgain));
}

}  // namespace zi
