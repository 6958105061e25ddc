// The program and its shard files: killed while it writes them, and what is in their place.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <thread>

#include "base/file_descriptor.h"
#include "cli_harness.h"

namespace zi::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
namespace fs = std::filesystem;

std::vector<fs::path> files_below(const std::string& folder) {
  std::vector<fs::path> files;
  std::error_code missing;
  for (const auto& e : fs::recursive_directory_iterator(folder, missing)) {
    if (!e.is_directory() && e.path().extension() != ".lock") files.push_back(e.path());
  }
  return files;
}

bool wait_until(const std::function<bool()>& reached) {
  for (int i = 0; i < 6000; ++i) {
    if (reached()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

/// Bytes of the files below the folder that the process has open and that have no name.
std::size_t unnamed_bytes(int pid, const std::string& folder) {
  std::size_t bytes = 0;
  std::error_code gone;
  for (const auto& fd : fs::directory_iterator("/proc/" + std::to_string(pid) + "/fd", gone)) {
    const std::string target = fs::read_symlink(fd.path(), gone).string();
    struct stat info {};
    if (target.starts_with(folder) && ::stat(fd.path().c_str(), &info) == 0 && info.st_nlink == 0) {
      bytes += static_cast<std::size_t>(info.st_size);
    }
  }
  return bytes;
}

TEST(ShardFiles, AJobThatIsKilledWhileItWritesThemLeavesNothing) {
  const TemporaryFolder folder;
  if (fs::space(folder.path()).available < 3'000'000'000) GTEST_SKIP() << "needs 3 GB of disk";
  // Shards of 620 MB: writing them takes long enough to be met at it.
  write_file(folder / "config.json",
             R"({"model_type":"bloom","hidden_size":1536,"n_head":8,"n_layer":11,"vocab_size":300,
                 "layer_norm_epsilon":1e-5,"eos_token_id":2})");
  const std::vector<std::string> arguments = {
      "--model",   folder.path(), "--load-format",       "dummy",         "--prompt", "a",
      "--backend", "cpu",         "--nvme-offload-path", folder / "nvme", "--quiet"};
  for (const int signal : {SIGTERM, SIGKILL}) {
    Job job(2, arguments);
    std::vector<int> ranks;
    const bool writes = wait_until([&] {
      ranks = job.rank_pids();
      std::size_t bytes = 0;
      for (const int rank : ranks) bytes += unnamed_bytes(rank, folder / "nvme");
      return bytes > 400'000'000 || !files_below(folder / "nvme").empty();
    });
    ASSERT_TRUE(writes);
    if (!files_below(folder / "nvme").empty()) {
      GTEST_SKIP() << "the file system makes no files without a name, or the disk is very fast";
    }
    // Both at once: mpirun takes its time, in which a rank may finish its file.
    for (const int rank : ranks) ::kill(rank, signal);
    EXPECT_NE(job.wait().code, 0);
    EXPECT_TRUE(wait_until([&] {
      for (const int rank : ranks) {
        if (::kill(rank, 0) == 0) return false;
      }
      return true;
    }));
    EXPECT_THAT(files_below(folder / "nvme"), IsEmpty()) << "after signal " << signal;
  }
}

TEST(ShardFiles, APathWhoseParentIsMissingIsRefusedBeforeAnythingIsMade) {
  const TemporaryFolder folder;
  const Ended ended = run_job(2, {"--model", model(), "--prompt", "Jesus wept.",
                                  "--nvme-offload-path", folder / "mistyped/nvme"});
  EXPECT_EQ(ended.code, 2);
  EXPECT_THAT(ended.err, AllOf(HasSubstr("there is no folder " + (folder / "mistyped")),
                               Not(HasSubstr("memory of a rank"))));
  EXPECT_FALSE(fs::exists(folder / "mistyped"));
}

std::vector<std::string> short_run_with_shards_on(const std::string& path) {
  return {"--model",
          model(),
          "--prompt",
          "Jesus wept.",
          "--backend",
          "cpu",
          "--nvme-offload-path",
          path,
          "--max-new-tokens",
          "2"};
}

/// A small file system, where this user may mount one.
class SmallDisk {
 public:
  SmallDisk(const std::string& path, const char* size) : path_(path) {
    fs::create_directories(path_);
    mounted_ = ::mount("none", path_.c_str(), "tmpfs", 0, size) == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount(path_.c_str());
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  bool mounted() const { return mounted_; }

 private:
  std::string path_;
  bool mounted_ = false;
};

TEST(ShardFiles, ADiskWithoutRoomForThoseOfAllRanksIsRefusedWithTheirSum) {
  const TemporaryFolder folder;
  const std::string disk = folder / "disk";
  const SmallDisk small(disk, "size=10m");
  if (!small.mounted()) GTEST_SKIP() << "no right to mount a small tmpfs";
  const std::vector<std::string> arguments = short_run_with_shards_on(disk);
  // The file of one of two ranks would fit.
  const Ended refused = run_job(2, arguments);
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.err, testing::ContainsRegex(
                               "the shard files of 2 ranks on .* need 1[0-9.]+ MiB together, " +
                               disk + " has 10.* MiB free; make room"));
  EXPECT_THAT(files_below(disk), IsEmpty());
}

TEST(ShardFiles, WhatKilledWritersLeftTakesNoRoomFromTheNextStart) {
  const TemporaryFolder folder;
  const std::string disk = folder / "disk";
  const SmallDisk small(disk, "size=20m");  // the files of both ranks need 14.1 MiB
  if (!small.mounted()) GTEST_SKIP() << "no right to mount a small tmpfs";
  const std::vector<std::string> arguments = short_run_with_shards_on(disk);
  ASSERT_EQ(run_job(2, arguments).code, 0);
  for (const fs::path& file : files_below(disk)) fs::rename(file, file.string() + ".tmp");
  const Ended ended = run_job(2, arguments);
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_THAT(ended.err, AllOf(HasSubstr("rank-0.shard.tmp (7.38 MB), which"),
                               HasSubstr("rank-1.shard.tmp (7.38 MB), which")));
  EXPECT_EQ(files_below(disk).size(), 2u);
}

TEST(ShardFiles, OneThatIsCompleteWhenAnotherRankFailsIsNamedAndUsedByTheNextStart) {
  const TemporaryFolder folder;
  const std::string disk = folder / "disk";
  const std::vector<std::string> arguments = short_run_with_shards_on(disk);
  ASSERT_EQ(run_job(2, arguments).code, 0);
  std::map<std::string, fs::path> files;
  for (const fs::path& path : files_below(disk)) files[path.filename()] = path;
  fs::remove(files.at("rank-0.shard"));
  fs::remove(files.at("rank-1.shard"));
  // Somebody else seems to be writing the file of rank 1.
  const std::string lock = files.at("rank-1.shard").string() + ".lock";
  FileDescriptor other(::open(lock.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(::flock(other.get(), LOCK_EX), 0);
  const Ended failed = run_job(2, arguments);
  EXPECT_EQ(failed.code, 2);
  EXPECT_THAT(failed.err, AllOf(HasSubstr("is being written by another job"),
                                HasSubstr(files.at("rank-0.shard").string() +
                                          " was written and is complete: it stays for the next")));
  EXPECT_TRUE(fs::exists(files.at("rank-0.shard")));
  const auto written = fs::last_write_time(files.at("rank-0.shard"));
  other.close();
  EXPECT_EQ(run_job(2, arguments).code, 0);
  EXPECT_EQ(fs::last_write_time(files.at("rank-0.shard")), written) << "it was written again";
}

TEST(ShardFiles, WhatStandsInTheirPlaceIsRefusedWithoutHanging) {
  const TemporaryFolder folder;
  const std::vector<std::string> arguments = {"--model",
                                              model(),
                                              "--prompt",
                                              "Jesus wept.",
                                              "--nvme-offload-path",
                                              folder / "nvme",
                                              "--max-new-tokens",
                                              "2"};
  ASSERT_EQ(run_job(2, arguments).code, 0);
  fs::path file;
  for (const fs::path& path : files_below(folder / "nvme")) {
    if (path.filename() == "rank-1.shard") file = path;
  }
  fs::remove(file);
  ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
  Job job(2, arguments);
  const Ended refused = job.wait(30);
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("[rank 1/2"), HasSubstr("rank-1.shard is a FIFO"),
                                 HasSubstr("remove it")));
  fs::remove(file);
  fs::permissions(file.parent_path(), fs::perms::group_write, fs::perm_options::add);
  const Ended open = run_job(2, arguments);
  EXPECT_EQ(open.code, 2);
  EXPECT_THAT(open.err, HasSubstr("can be written by others (mode 0720)"));
}

}  // namespace
}  // namespace zi::test
