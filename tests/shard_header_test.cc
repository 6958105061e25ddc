#include "offload/shard_header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <fstream>

#include "tests/shard_test_util.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

using test::contents;
using test::flip_byte;
using test::message_of;
using test::read_header;
using test::TestUnits;
using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

void overwrite_start(const fs::path& path, std::span<const std::byte> bytes) {
  std::fstream out(path, std::ios::binary | std::ios::in | std::ios::out);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
}

class HeaderOfShardFile : public testing::Test {
 protected:
  const fs::path& directory() const { return directory_.path(); }
  std::string failure_of_prepare() {
    return message_of<IoError>([&] { units_.prepare(directory()); });
  }

  test::TemporaryDirectory directory_;
  TestUnits units_{4};
};

TEST_F(HeaderOfShardFile, WithAnyByteFlippedIsRefused) {
  const fs::path path = units_.prepare(directory());
  const std::size_t header_bytes = read_header(path).header_bytes;
  for (std::size_t i = 0; i < header_bytes; i += i < 400 ? 1 : 97) {
    flip_byte(path, i);
    const std::string message = failure_of_prepare();
    EXPECT_THAT(message, HasSubstr(path.string())) << i;
    if (i < 8) {
      EXPECT_THAT(message, HasSubstr("is not a shard file"));
    }
    if (i == 8) {
      EXPECT_THAT(message, HasSubstr("version 18"));
    }
    if (i == 12) {
      EXPECT_THAT(message, HasSubstr("byte order"));
    }
    if (i > 24) {
      EXPECT_THAT(message, HasSubstr("its checksum differs"));
    }
    flip_byte(path, i);
  }
  EXPECT_EQ(failure_of_prepare(), "nothing was thrown");
}

TEST_F(HeaderOfShardFile, WithAWrongFieldUnderARightChecksumIsRefusedWithoutHarm) {
  const fs::path path = units_.prepare(directory());
  const std::size_t header_bytes = read_header(path).header_bytes;
  const std::size_t file_bytes = fs::file_size(path);
  std::vector<std::byte> good = contents(path);
  good.resize(header_bytes);
  int refused = 0;
  for (std::size_t i = 16; i < 160; ++i) {
    for (const int value : {0x00, 0x01, 0x7f, 0xff}) {
      std::vector<std::byte> bytes = good;
      bytes[i] = static_cast<std::byte>(value);
      const std::uint64_t checksum = XXH3_64bits(bytes.data(), header_bytes - 8);
      for (std::size_t b = 0; b < 8; ++b) {
        bytes[header_bytes - 8 + b] = static_cast<std::byte>(checksum >> (8 * b));
      }
      overwrite_start(path, bytes);
      const std::string message = message_of<IoError>([&] {
        const ShardHeader header = read_header(path);
        for (const ShardUnit& unit : header.units) {
          const ShardExtent last = header.extent(unit, header.extent_count(unit) - 1);
          EXPECT_LE(last.offset + last.bytes, file_bytes);
        }
      });
      if (message != "nothing was thrown") {
        EXPECT_THAT(message, HasSubstr(path.string()));
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 200);
}

TEST_F(HeaderOfShardFile, InAnotherFormThanItIsWrittenInIsRefused) {
  const fs::path path = units_.prepare(directory());
  const ShardHeader good = read_header(path);
  const auto refusal = [&](std::vector<std::byte> bytes, std::uint64_t file_bytes) {
    const std::size_t end = bytes.size() - 8;
    const std::uint64_t checksum = XXH3_64bits(bytes.data(), end);
    std::memcpy(bytes.data() + end, &checksum, 8);
    overwrite_start(path, bytes);
    fs::resize_file(path, file_bytes);
    return message_of<IoError>([&] { read_header(path); });
  };
  std::vector<std::byte> junk = good.encode();
  junk[good.header_bytes - 9] = std::byte{1};
  EXPECT_THAT(refusal(junk, good.file_bytes), HasSubstr("what follows its tables"));
  ShardHeader longer = good;
  longer.header_bytes += kPageBytes;
  longer.file_bytes += kPageBytes;
  for (ShardUnit& unit : longer.units) unit.offset += kPageBytes;
  EXPECT_THAT(refusal(longer.encode(), longer.file_bytes), HasSubstr("damaged (header size)"));
  EXPECT_EQ(refusal(good.encode(), good.file_bytes), "nothing was thrown");
}

TEST_F(HeaderOfShardFile, OfAFileThatIsCutShortIsRefusedAtAnyLength) {
  const fs::path path = units_.prepare(directory());
  const std::size_t size = fs::file_size(path);
  for (const std::size_t cut : {size - 1, size - 4096, size / 2, std::size_t{4096}}) {
    fs::resize_file(path, cut);
    EXPECT_THAT(failure_of_prepare(), AllOf(HasSubstr(path.string()), HasSubstr("cut short"),
                                            HasSubstr(std::to_string(cut))));
  }
  const std::string again = "; remove it, and the next start writes it again";
  for (const std::size_t cut : {4000, 60, 8, 3}) {
    fs::resize_file(path, cut);
    EXPECT_THAT(failure_of_prepare(),
                AllOf(HasSubstr(path.string() +
                                ": the shard file is cut short: " + std::to_string(cut) + " bytes"),
                      HasSubstr(again)));
  }
  fs::resize_file(path, 0);
  EXPECT_EQ(failure_of_prepare(), path.string() + ": the shard file is empty" + again);
  for (const std::size_t zeros : {size, std::size_t{79}, std::size_t{16}, std::size_t{3}}) {
    fs::resize_file(path, 0);
    fs::resize_file(path, zeros);
    EXPECT_EQ(failure_of_prepare(),
              path.string() + ": the shard file is damaged, it begins with zeros" + again)
        << zeros;
  }
  std::ofstream(path) << "a letter";
  EXPECT_THAT(failure_of_prepare(), HasSubstr("is not a shard file; move it away"));
}

TEST_F(HeaderOfShardFile, OfAFileThatGrewIsRefused) {
  const fs::path path = units_.prepare(directory());
  fs::resize_file(path, fs::file_size(path) + 4096);
  EXPECT_THAT(failure_of_prepare(), HasSubstr("damaged"));
}

}  // namespace
}  // namespace zi
