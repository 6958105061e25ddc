#include "measure/storage_probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <filesystem>

#include "tests/shard_test_util.h"
#include "zero_infer/backend.h"

namespace zi {
namespace {

using test::message_of;
using testing::AllOf;
using testing::AnyOf;
using testing::Each;
using testing::HasSubstr;
using testing::SizeIs;

constexpr std::size_t kKiB = std::size_t{1} << 10;

StorageEffort small() {
  return {.fill_seconds = 1,
          .seconds = 0.1,  // a slow disk moves the largest of the numbers in three times that
          .most_bytes = 4096 * kKiB,
          .least_bytes = 1024 * kKiB,
          .depths = {1, 4},
          .sizes = {64 * kKiB, 128 * kKiB, 256 * kKiB}};
}

/// Limits files of this process to this many bytes, until the end of the scope.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(std::size_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  ~FileSizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
};

std::string refusal(const std::filesystem::path& directory, const StorageEffort& effort = small()) {
  return message_of<IoError>([&] { const StorageProbe probe(directory, effort); });
}

TEST(StorageProbe, GivesARateForEachSizeAndDepthAndLeavesNoFile) {
  const test::TemporaryDirectory directory;
  const auto device = make_cpu_device();
  StorageProbe probe(directory.path(), small());
  EXPECT_TRUE(std::filesystem::is_empty(directory.path())) << "an interrupt would leave the file";
  const StorageTable table = probe.measure(*device);
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
  const auto plausible = AllOf(testing::Gt(1e4), testing::Lt(1e12));  // bytes a second
  EXPECT_THAT(table.reads, AllOf(SizeIs(6), Each(plausible)));
  EXPECT_THAT(table.writes, AllOf(SizeIs(6), Each(plausible)));
  EXPECT_THAT(table.method, AnyOf("io_uring + O_DIRECT", "io_uring, buffered", "pread + O_DIRECT",
                                  "pread, buffered"));
}

TEST(StorageProbe, LeavesOutWhatWouldTakeTooLong) {
  const test::TemporaryDirectory directory;
  const auto device = make_cpu_device();
  StorageEffort effort = small();
  effort.seconds = 0;  // one block is moved, any other number would take longer
  const StorageTable table = StorageProbe(directory.path(), effort).measure(*device);
  for (const std::vector<double>& rates : {table.reads, table.writes}) {
    ASSERT_EQ(rates.size(), 6u);
    EXPECT_GT(rates[0], 0);
    for (std::size_t i = 1; i < rates.size(); ++i) EXPECT_EQ(rates[i], 0) << i;
  }
}

TEST(StorageProbe, StaysWithinTheLimitOfAFilesSize) {
  const test::TemporaryDirectory directory;
  const auto device = make_cpu_device();
  const FileSizeLimit limit(1500 * kKiB);  // going over it would end the process
  EXPECT_THAT(StorageProbe(directory.path(), small()).measure(*device).writes,
              Each(testing::Gt(0)));
}

TEST(StorageProbe, RefusesADirectoryWithoutRoom) {
  const test::TemporaryDirectory directory;
  {
    const FileSizeLimit limit(1000 * kKiB);
    EXPECT_THAT(refusal(directory.path()),
                AllOf(HasSubstr(directory.path().string()), HasSubstr("ulimit -f")));
  }
  StorageEffort greedy = small();
  greedy.least_bytes = std::size_t{1} << 60;
  EXPECT_THAT(refusal(directory.path(), greedy), HasSubstr("make room"));
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

TEST(StorageProbe, RefusesWhatIsNoDirectoryToWriteTo) {
  const test::TemporaryDirectory directory;
  EXPECT_THAT(refusal(directory.path() / "none"),
              AllOf(HasSubstr("none: "), HasSubstr("No such file"), HasSubstr("--path")));
  EXPECT_THAT(refusal("/proc/self/status"), HasSubstr("Not a directory"));
  EXPECT_THAT(refusal("/proc"), HasSubstr("--path"));
}

}  // namespace
}  // namespace zi
