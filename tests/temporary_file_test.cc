// What a writer of shard files leaves when it is killed, and how a file gets its name.

#include "offload/temporary_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <fstream>
#include <iterator>

#include "offload/shard_file.h"
#include "tests/child_process.h"
#include "tests/shard_test_util.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

using test::files_in;
using test::kill_at_call;
using test::Killed;
using test::message_of;
using test::message_of_child;
using test::TestUnits;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
namespace fs = std::filesystem;
using Names = std::vector<std::string>;

class WriterOfShardFiles : public testing::Test {
 protected:
  const fs::path& directory() const { return directory_.path(); }
  fs::path path() const { return shard_file_path(directory(), units_.key); }
  fs::path left_behind() const { return path().string() + ".tmp"; }
  fs::path folder() const { return path().parent_path(); }

  /// Whether files can be made without a name on the disk of the tests.
  bool makes_files_without_a_name() const {
    const FileDescriptor file(::open(directory().c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600));
    return file.is_open() &&
           ::linkat(AT_FDCWD, fmt::format("/proc/self/fd/{}", file.get()).c_str(), AT_FDCWD,
                    (directory() / "linked").c_str(), AT_SYMLINK_FOLLOW) == 0 &&
           fs::remove(directory() / "linked");
  }

  /// Units [0, last) are all there and right.
  void expect_whole(int last) const {
    const OpenShardFile file = OpenShardFile::open(path());
    EXPECT_TRUE(file.holds(units_.sizes(0, last)));
    std::ifstream in(path(), std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(in), {}};
    for (int u = 0; u < last; ++u) {
      const ShardUnit& unit = *file.header.find(u);
      EXPECT_EQ(std::memcmp(bytes.data() + unit.offset, units_.shard(u).data(), unit.bytes), 0);
    }
  }

  /// Kills a writer of unit 0 up to `last` at each system call that may change files. `after` looks
  /// at what each left, then the next start has to put it right. Returns the number of kills, -1
  /// where there is no right to trace a child.
  int kill_at_every_call(const std::function<void()>& before, const std::function<void()>& write,
                         const std::function<void()>& after, int last) {
    for (int count = 0;; ++count) {
      fs::remove_all(folder());
      before();
      const Killed killed = kill_at_call(count, write);
      if (killed == Killed::kNotTraced) return -1;
      if (killed == Killed::kEndedBefore) return count;
      SCOPED_TRACE("killed at its change number " + std::to_string(count));
      after();
      units_.prepare(directory(), 0, last);
      expect_whole(last);
      EXPECT_EQ(files_in(directory()), Names{"rank-1.shard"});
      if (HasFailure()) return count;
    }
  }

  /// A folder, the lock, the file and its mode, room for it, a unit and the header, a flush, a
  /// name.
  static constexpr int kFewestChanges = 8;

  test::TemporaryDirectory directory_;
  // One extent a unit and one reader: no thread but the caller's.
  TestUnits units_{2, 1};
};

TEST_F(WriterOfShardFiles, IsKilledAtTheSameChangeOfAFileWhateverElseItCalls) {
  const FileDescriptor null(::open("/dev/null", O_WRONLY | O_CLOEXEC));
  for (const int others : {0, 1, 50}) {
    const fs::path folder = directory() / std::to_string(others);
    const Killed killed = kill_at_call(1, [&] {
      for (int i = 0; i < others; ++i) ::getppid();
      fs::create_directory(folder);
      for (int i = 0; i < others; ++i) EXPECT_EQ(::write(null.get(), "", 1), 1);
      fs::create_directory(folder / "not any more");
    });
    if (killed == Killed::kNotTraced) GTEST_SKIP() << "no right to trace a child";
    EXPECT_EQ(killed, Killed::kYes);
    EXPECT_TRUE(fs::exists(folder));
    EXPECT_TRUE(fs::is_empty(folder));
  }
}

TEST_F(WriterOfShardFiles, KilledAtAnyCallLeavesNothingWithoutAName) {
  if (!makes_files_without_a_name()) GTEST_SKIP() << "every file needs a name on this disk";
  const int kills = kill_at_every_call([] {}, [&] { units_.prepare(directory(), 0, 1); },
                                       [&] {
                                         // It may have just got its name. The trial of a link has
                                         // no size.
                                         if (fs::exists(path())) expect_whole(1);
                                         if (fs::exists(left_behind())) {
                                           EXPECT_EQ(fs::file_size(left_behind()), 0u);
                                         }
                                       },
                                       1);
  if (kills < 0) GTEST_SKIP() << "no right to trace a child";
  EXPECT_GT(kills, kFewestChanges);
}

TEST_F(WriterOfShardFiles, KilledAtAnyCallKeepsTheFileThatItWouldReplace) {
  if (!makes_files_without_a_name()) GTEST_SKIP() << "every file needs a name on this disk";
  const int kills = kill_at_every_call(
      [&] { units_.prepare(directory(), 0, 1); }, [&] { units_.prepare(directory(), 0, 2); },
      [&] {
        expect_whole(1);
        // The trial of a link has no size. Between its link and its rename the new file has
        // another name: nothing of it is missing then.
        if (!fs::exists(left_behind()) || fs::file_size(left_behind()) == 0) return;
        EXPECT_TRUE(OpenShardFile::open(left_behind()).holds(units_.sizes(0, 2)));
      },
      2);
  if (kills < 0) GTEST_SKIP() << "no right to trace a child";
  EXPECT_GT(kills, kFewestChanges);
}

TEST_F(WriterOfShardFiles, KilledWhereFilesNeedNamesIsCleanedUpByTheNext) {
  int left = 0;
  const int kills = kill_at_every_call([] {},
                                       [&] {
                                         test::refuse_unnamed_files();
                                         units_.prepare(directory(), 0, 1);
                                       },
                                       [&] {
                                         if (fs::exists(path())) expect_whole(1);
                                         left += fs::exists(left_behind());
                                       },
                                       1);
  if (kills < 0) GTEST_SKIP() << "no right to trace a child";
  EXPECT_GT(kills, kFewestChanges);
  EXPECT_GT(left, 3) << "the refusal was without effect";
}

TEST_F(WriterOfShardFiles, KilledBesideItsThreadsLeavesNothing) {
  if (!makes_files_without_a_name()) GTEST_SKIP() << "every file needs a name on this disk";
  const TestUnits many(12);
  for (const int signal : {SIGTERM, SIGKILL}) {
    for (const std::size_t killed_at : {std::size_t{1}, std::size_t{200'000}}) {
      const std::string end = message_of_child([&] {
        std::size_t done = 0;
        many.prepare(directory(), 0, 12, [&](std::size_t bytes) {
          done += bytes;
          if (done >= killed_at) ::kill(::getpid(), signal);
        });
      });
      EXPECT_EQ(end, "ended by signal " + std::to_string(signal));
      EXPECT_THAT(files_in(directory()), IsEmpty());
    }
  }
}

TEST_F(WriterOfShardFiles, WorksWhereFilesNeedNames) {
  EXPECT_EQ(message_of_child([&] {
              test::refuse_unnamed_files();
              units_.prepare(directory(), 0, 1);
              units_.prepare(directory(), 0, 2);
            }),
            "");
  expect_whole(2);
  EXPECT_EQ(files_in(directory()), Names{"rank-1.shard"});
  struct stat info {};
  ASSERT_EQ(::stat(path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(WriterOfShardFiles, WorksWhereAFileWithoutANameCannotGetOne) {
  // As where /proc is not mounted: found before anything is written.
  EXPECT_EQ(message_of_child([&] {
              test::refuse_call(SYS_linkat, ENOENT);
              units_.prepare(directory(), 0, 2);
            }),
            "");
  expect_whole(2);
  EXPECT_EQ(files_in(directory()), Names{"rank-1.shard"});
}

TEST_F(WriterOfShardFiles, ThatFailsWhereFilesNeedNamesLeavesNothing) {
  EXPECT_EQ(message_of_child([&] {
              test::refuse_unnamed_files();
              units_.prepare(directory(), 0, 2, [](std::size_t) { throw Error("interrupted"); });
            }),
            "interrupted");
  EXPECT_THAT(files_in(directory()), IsEmpty());
}

TEST_F(WriterOfShardFiles, ThatCannotNameItsFileLeavesNothingAndTheOldOne) {
  units_.prepare(directory(), 0, 1);
  EXPECT_THAT(message_of_child([&] {
                test::refuse_call(SYS_renameat, EIO);
                units_.prepare(directory(), 0, 2);
              }),
              AllOf(HasSubstr("rank-1.shard"), HasSubstr("cannot rename")));
  expect_whole(1);
  EXPECT_EQ(files_in(directory()), Names{"rank-1.shard"});
}

TEST_F(WriterOfShardFiles, ThatWasKilledIsCleanedUpByAStartThatWritesNothing) {
  units_.prepare(directory());
  std::ofstream(left_behind()) << std::string(100'000, 'x');
  testing::internal::CaptureStderr();
  units_.prepare(directory());
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("removed"), HasSubstr("rank-1.shard.tmp"), HasSubstr("100 kB")));
  EXPECT_EQ(files_in(directory()), Names{"rank-1.shard"});
}

TEST_F(WriterOfShardFiles, ThatWasKilledTakesNoRoomWhenTheSpaceIsCounted) {
  units_.prepare(directory(), 0, 1);
  const auto bytes_to_write = [&](int units) {
    return shard_bytes_to_write(directory(), units_.key, units_.sizes(0, units),
                                TestUnits::kExtentBytes);
  };
  for (const int units : {2, 1}) {  // the file lacks one of them; it will do
    std::ofstream(left_behind()) << std::string(100'000, 'x');
    {
      const auto folder = ShardFolder::find(this->folder());
      const auto lock = folder->lock("rank-1.shard.lock");
      ASSERT_TRUE(lock);
      EXPECT_EQ(bytes_to_write(units) > 0, units == 2);
      EXPECT_TRUE(fs::exists(left_behind())) << "its writer lives";
    }
    EXPECT_EQ(bytes_to_write(units) > 0, units == 2);
    EXPECT_FALSE(fs::exists(left_behind()));
  }
}

TEST_F(WriterOfShardFiles, ThatLivesKeepsWhatItWrites) {
  units_.prepare(directory());
  std::ofstream(left_behind()) << "being written";
  const auto folder = ShardFolder::find(this->folder());
  const auto lock = folder->lock("rank-1.shard.lock");
  ASSERT_TRUE(lock);
  units_.prepare(directory());  // uses the file that is there
  EXPECT_EQ(files_in(directory()), (Names{"rank-1.shard", "rank-1.shard.tmp"}));
}

TEST_F(WriterOfShardFiles, ThatFindsNoRoomInMidWriteLeavesNothingAndNamesWhatTakesIt) {
  const fs::path small = directory() / "small";
  fs::create_directories(small);
  if (::mount("none", small.c_str(), "tmpfs", 0, "size=1m") != 0) {
    GTEST_SKIP() << "no right to mount a small tmpfs";
  }
  const TestUnits many(6);
  const fs::path old = small / "test_model_1-000000aa00000000-bfloat16-world2";
  fs::create_directories(old);
  std::ofstream(old / "rank-0.shard") << std::string(200'000, 'x');
  const std::string message = message_of_child([&] {
    test::refuse_call(SYS_fallocate, EOPNOTSUPP);  // nothing is reserved
    many.prepare(small, 0, 6, [&](std::size_t) {
      std::ofstream(small / "filler") << std::string(2'000'000, 'x');
    });
  });
  fs::remove_all(old);
  fs::remove(small / "filler");
  const Names left = files_in(small);
  ::umount2(small.c_str(), MNT_DETACH);
  EXPECT_THAT(message, AllOf(HasSubstr("cannot write"), HasSubstr("No space left on device"),
                             HasSubstr("--nvme-offload-path"),
                             HasSubstr(old.filename().string() + " (201 kB)")));
  EXPECT_THAT(left, IsEmpty());
}

}  // namespace
}  // namespace zi
