// Any bytes as a shard file: refused with a reason, or a header whose shards lie one after the
// other in the file, and which is written as it was read. Each input is taken three times: as it
// is; with what a guess does not meet put right (the start, the sizes of header and file, the
// checksum), so that the fields and tables in between are reached; and with shards that follow
// each other besides.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_descriptor.h"
#include "offload/shard_file.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace {

constexpr std::size_t kChecksumAt = 8;  // from the header's end
constexpr std::size_t kHeaderBytesAt = 16;
constexpr std::size_t kFileBytesAt = 24;
constexpr std::size_t kUnitsAt = 64;
constexpr std::size_t kNameBytesAt = 76;
constexpr std::size_t kNameAt = 80;
constexpr std::size_t kUnitBytes = 20;  // number, bytes, offset
/// Files of this size need no blocks.
constexpr std::uint64_t kMostFileBytes = std::uint64_t{1} << 42;

void check(bool good) {
  if (!good) std::abort();
}

void put(std::span<std::byte> bytes, std::size_t at, std::uint64_t value) {
  for (std::size_t i = 0; i < 8; ++i) bytes[at + i] = static_cast<std::byte>(value >> (8 * i));
}

std::uint64_t get(std::span<const std::byte> bytes, std::size_t at, std::size_t size = 8) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < size; ++i) {
    value |= std::to_integer<std::uint64_t>(bytes[at + i]) << (8 * i);
  }
  return value;
}

void check_header(const zi::ShardHeader& header, std::span<const std::byte> bytes,
                  std::uint64_t file_bytes) {
  check(header.file_bytes == file_bytes && header.header_bytes <= bytes.size());
  check(std::ranges::equal(header.encode(), bytes.first(header.header_bytes)));
  std::uint64_t end = header.header_bytes;
  std::size_t extents = 0;
  int before = -1;
  for (const zi::ShardUnit& unit : header.units) {
    check(unit.unit > before && header.find(unit.unit) == &unit);
    before = unit.unit;
    const std::size_t count = header.extent_count(unit);
    check(count >= 1);
    // The first and the last: between them they are all alike.
    check(header.extent(unit, 0).offset == end && end == unit.offset);
    const zi::ShardExtent last = header.extent(unit, count - 1);
    check(last.bytes >= 1 && last.bytes <= header.extent_bytes);
    check(last.offset == end + (count - 1) * header.extent_bytes);
    end = last.offset + last.bytes;
    check(end <= file_bytes);
    extents += count;
  }
  check(end == file_bytes && extents == header.checksums.size());
  zi::OpenShardFile file;
  file.header = header;
  file.check_key(header.key, header.extent_bytes);
  check(file.holds({}));
}

/// The bytes as the start of a file of that size.
void read_file(std::span<const std::byte> bytes, std::uint64_t file_bytes) {
  static const zi::FileDescriptor file(::memfd_create("shard", MFD_CLOEXEC));
  check(::ftruncate(file.get(), 0) == 0);
  check(::pwrite(file.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  check(::ftruncate(file.get(), static_cast<off_t>(file_bytes)) == 0);
  try {
    check_header(zi::read_shard_header(file.get(), "fuzz"), bytes, file_bytes);
  } catch (const zi::IoError& refusal) {
    check(std::string_view(refusal.what()).find("fuzz") != std::string_view::npos);
  }
}

/// A good header, in which the fields above are where they are said to be.
std::vector<std::byte> known_header() {
  constexpr std::string_view kName = "name";
  std::vector<std::byte> good =
      zi::plan_shard_file({.model_name = std::string(kName)}, zi::kPageBytes, {{7, zi::kPageBytes}})
          .encode();
  check(get(good, kHeaderBytesAt) == good.size() && get(good, kFileBytesAt) > good.size());
  check(get(good, kUnitsAt, 4) == 1 && get(good, kNameBytesAt, 4) == kName.size());
  check(std::memcmp(good.data() + kNameAt, kName.data(), kName.size()) == 0);
  check(get(good, kNameAt + kName.size(), 4) == 7);
  return good;
}

/// Puts start, header size and checksum right, and the file's size where it is absurd.
void read_put_right(std::vector<std::byte>& bytes) {
  static const std::vector<std::byte> good = known_header();
  std::ranges::copy(std::span(good).first(kHeaderBytesAt), bytes.begin());
  put(bytes, kHeaderBytesAt, bytes.size());
  const std::size_t checksum_at = bytes.size() - kChecksumAt;
  put(bytes, checksum_at, zi::shard_checksum(std::span(bytes).first(checksum_at)));
  const std::uint64_t file_bytes = get(bytes, kFileBytesAt);
  read_file(bytes, file_bytes <= kMostFileBytes ? file_bytes : bytes.size());
}

/// Gives each shard of the table the offset at which the one before ends, and the file their sum.
void put_shards_in_a_row(std::vector<std::byte>& bytes) {
  std::uint64_t end = bytes.size();
  std::uint64_t at = kNameAt + get(bytes, kNameBytesAt, 4);
  for (std::uint64_t left = get(bytes, kUnitsAt, 4); left > 0 && at + kUnitBytes <= bytes.size();
       --left, at += kUnitBytes) {
    put(bytes, at + 12, end);
    end += get(bytes, at + 4);
  }
  put(bytes, kFileBytesAt, end);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto input = std::as_bytes(std::span(data, size));
  read_file(input, size);
  std::vector<std::byte> bytes(std::max(zi::kPageBytes, zi::align_up(size, zi::kPageBytes)));
  std::ranges::copy(input, bytes.begin());
  read_put_right(bytes);
  put_shards_in_a_row(bytes);
  read_put_right(bytes);
  return 0;
}
