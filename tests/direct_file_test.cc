#include "checkpoint/direct_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "synthetic_checkpoint.h"
#include "zero_infer/bytes.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

/// Seeded noise.
std::string noise(std::size_t bytes) {
  std::mt19937_64 random(7);
  std::string data(bytes, '\0');
  for (char& c : data) c = static_cast<char>(random());
  return data;
}

class DirectFileTest : public ::testing::Test {
 protected:
  ~DirectFileTest() override {
    if (fd_ >= 0) ::close(fd_);
  }
  DirectFile open(const std::string& data) {
    test::write_text(path_, data);
    fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    return {path_, fd_, data.size()};
  }
  /// Brings the file to the disk and out of the page cache.
  static void evict(const std::filesystem::path& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    EXPECT_EQ(::fsync(fd), 0);
    EXPECT_EQ(::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    ::close(fd);
  }

  test::TemporaryDirectory directory_;
  const std::string path_ = (directory_.path() / "noise").string();
  int fd_ = -1;
};

TEST_F(DirectFileTest, GivesTheBytesOfAnyRange) {
  const std::string data = noise((std::size_t{3} << 20) + 1717);  // ends inside a page
  const DirectFile file = open(data);
  if (!file.usable()) GTEST_SKIP() << "O_DIRECT is refused here: " << file.refusal();
  DirectFile::Block block;
  std::mt19937_64 random(1);
  const auto expect_range = [&](std::size_t offset, std::size_t bytes) {
    const auto got = file.read(offset, bytes, block);
    ASSERT_EQ(got.size(), bytes);
    ASSERT_EQ(std::memcmp(got.data(), data.data() + offset, bytes), 0) << offset << " +" << bytes;
  };
  for (int i = 0; i < 300; ++i) {
    const std::size_t offset = random() % data.size();
    const std::size_t most = std::min(DirectFile::kMostBytes, data.size() - offset);
    expect_range(offset, random() % 2 == 0 ? random() % (most + 1) : most);
  }
  for (std::size_t offset : {0u, 1u, 4095u, 4096u, 4097u}) {
    for (std::size_t bytes : {0u, 1u, 4095u, 4096u, 4097u}) expect_range(offset, bytes);
    expect_range(offset, DirectFile::kMostBytes);
    expect_range(data.size() - offset, offset);
  }
  EXPECT_THROW(file.read(0, DirectFile::kMostBytes + 1, block), Error);
}

TEST_F(DirectFileTest, SaysWhereAFileEndsTooEarly) {
  const DirectFile file = open(noise(40000));
  if (!file.usable()) GTEST_SKIP() << "O_DIRECT is refused here: " << file.refusal();
  DirectFile::Block block;
  for (std::size_t size : {20000u, 16384u}) {  // inside a page, and at its end
    std::filesystem::resize_file(path_, size);
    EXPECT_THAT([&] { file.read(9000, 30000, block); },
                ThrowsMessage<IoError>(
                    AllOf(HasSubstr("noise"), HasSubstr(fmt::format("ends at offset {}", size)),
                          HasSubstr(fmt::format("{} bytes too early", 39000 - size)))));
    EXPECT_EQ(file.read(9000, size - 9000, block).size(), size - 9000);
  }
}

TEST_F(DirectFileTest, RefusesAFileThatHasTakenTheName) {
  open(noise(5000));
  std::filesystem::rename(path_, path_ + ".old");
  test::write_text(path_, noise(5000));
  const DirectFile other(path_, fd_, 5000);
  EXPECT_FALSE(other.usable());
  EXPECT_FALSE(other.refusal().empty());
  EXPECT_FALSE(other.is_cached(0, 100));
}

TEST_F(DirectFileTest, KnowsWhatRestsInThePageCache) {
  const std::string data = noise(std::size_t{2} << 20);
  const DirectFile file = open(data);
  if (!file.usable()) GTEST_SKIP() << "O_DIRECT is refused here: " << file.refusal();
  EXPECT_TRUE(file.is_cached(5, data.size() - 5));  // just written
  evict(path_);
  if (file.is_cached(0, 1)) GTEST_SKIP() << "this file system keeps its files in the cache";
  EXPECT_FALSE(file.is_cached(0, data.size()));
  DirectFile::Block block;
  file.read(0, 100000, block);
  EXPECT_FALSE(file.is_cached(0, 100000)) << "a direct read left pages there";
  char byte = 0;
  ASSERT_EQ(::posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM), 0);
  ASSERT_EQ(::pread(fd_, &byte, 1, 8192), 1);
  EXPECT_TRUE(file.is_cached(8192, 4096));
  EXPECT_FALSE(file.is_cached(0, 100000));
  EXPECT_FALSE(file.is_cached(data.size() - 1, 2)) << "beyond the end";
}

// A tensor's values do not depend on how they came: past the cache or out of it, in any type, from
// any byte of the file.
TEST_F(DirectFileTest, CheckpointsReadTheSameFromDiskAndCache) {
  constexpr std::int64_t kRows = 1500, kCols = 1001;  // three blocks of float32 and more
  struct Type {
    const char* name;
    DType dtype;
  };
  for (const Type& type : {Type{"BF16", DType::kBFloat16}, Type{"F16", DType::kFloat16},
                           Type{"F32", DType::kFloat32}}) {
    const std::string data = noise(kRows * kCols * size_of(type.dtype));
    for (std::size_t spaces : {0u, 1u, 2u, 3u}) {  // in the header: the tensor begins anywhere
      const std::string header =
          fmt::format(R"({{"t":{{"dtype":"{}","shape":[{},{}],"data_offsets":[0,{}]}}}}{})",
                      type.name, kRows, kCols, data.size(), std::string(spaces, ' '));
      const auto file = directory_.path() / "model.safetensors";
      test::write_text(file, test::safetensors_bytes(header, data));
      const auto source = open_checkpoint(directory_.path(), "");
      std::mt19937_64 random(spaces);
      for (DType to : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
        for (int i = 0; i < 4; ++i) {
          const std::int64_t first = i == 0 ? 0 : static_cast<std::int64_t>(random() % 100000);
          const std::int64_t count =
              i == 0 ? kRows * kCols
                     : static_cast<std::int64_t>(random() % (kRows * kCols - 100000));
          const auto elements = static_cast<std::size_t>(count);
          std::vector<std::byte> expected(elements * size_of(to) + 4, std::byte{0xee});
          std::vector<std::byte> got = expected;
          const std::string part =
              data.substr(static_cast<std::size_t>(first) * size_of(type.dtype),
                          elements * size_of(type.dtype));
          convert(part.data(), type.dtype, expected.data(), to, elements);
          if (i % 2 == 0) evict(file);
          source->read({"t", {kRows, kCols}}, first, count, to, got.data());
          ASSERT_TRUE(got == expected) << type.name << " to " << name_of(to) << ", " << spaces
                                       << ", " << first << " +" << count;
        }
      }
    }
  }
}

TEST_F(DirectFileTest, CheckpointsSayWhenTheyAreShortened) {
  const std::string data = noise(std::size_t{1} << 20);
  const auto file = directory_.path() / "model.safetensors";
  test::write_text(
      file, test::safetensors_bytes(
                R"({"t":{"dtype":"BF16","shape":[1024,512],"data_offsets":[0,1048576]}})", data));
  const auto source = open_checkpoint(directory_.path(), "");
  evict(file);
  std::filesystem::resize_file(file, 700000);
  std::vector<std::byte> dst(data.size());
  EXPECT_THAT(
      [&] {
        source->read({"t", {1024, 512}}, 0, 1024 * 512, DType::kBFloat16, dst.data());
      },
      ThrowsMessage<IoError>(AllOf(HasSubstr("model.safetensors"),
                                   HasSubstr("ends at offset 700000"), HasSubstr("too early"))));
}

}  // namespace
}  // namespace zi
