// Shard files on a disk that other users can write to.

#include "offload/shard_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include <fstream>
#include <utility>

#include "offload/nvme_store.h"
#include "offload/shard_file.h"
#include "tests/child_process.h"
#include "tests/shard_test_util.h"

namespace zi {
namespace {

using test::become;
using test::files_in;
using test::kNobody;
using test::LazyDevice;
using test::message_of;
using test::message_of_child;
using test::TestUnits;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
namespace fs = std::filesystem;

bool is_root() { return ::geteuid() == 0; }

mode_t mode_of(const fs::path& path) {
  struct stat info {};
  EXPECT_EQ(::lstat(path.c_str(), &info), 0) << path;
  return info.st_mode & 07777;
}

void set_mode(const fs::path& path, mode_t mode) { ASSERT_EQ(::chmod(path.c_str(), mode), 0); }

void give_to(const fs::path& path, uid_t user) { ASSERT_EQ(::lchown(path.c_str(), user, user), 0); }

/// Something that is no plain file, at `path`; `target` is where a link leads.
struct Kind {
  std::string text;  // of the refusal
  std::function<bool(const fs::path& path, const fs::path& target)> make;
};

const std::vector<Kind>& foreign_kinds() {
  static const std::vector<Kind> kinds = {
      {"is a FIFO",
       [](const fs::path& path, const fs::path&) { return ::mkfifo(path.c_str(), 0600) == 0; }},
      {"is a symbolic link",
       [](const fs::path& path, const fs::path& target) {
         return ::symlink(target.c_str(), path.c_str()) == 0;
       }},
      {"is a socket",
       [](const fs::path& path, const fs::path&) {
         const FileDescriptor made(::socket(AF_UNIX, SOCK_STREAM, 0));
         const FileDescriptor folder(::open(path.parent_path().c_str(), O_PATH | O_CLOEXEC));
         const std::string name =
             fmt::format("/proc/self/fd/{}/{}", folder.get(), path.filename().string());
         sockaddr_un address{};
         address.sun_family = AF_UNIX;
         name.copy(address.sun_path, sizeof address.sun_path - 1);
         return ::bind(made.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
                0;
       }},
      {"is a device", [](const fs::path& path, const fs::path&) {
         return ::mknod(path.c_str(), S_IFCHR | 0600, ::makedev(1, 5)) == 0;  // as /dev/zero
       }}};
  return kinds;
}

class SharedDisk : public testing::Test {
 protected:
  SharedDisk() { set_mode(directory(), 01777); }

  const fs::path& directory() const { return directory_.path(); }
  fs::path path() const { return shard_file_path(directory(), units_.key); }
  fs::path folder() const { return path().parent_path(); }
  fs::path lock() const { return path().string() + ".lock"; }

  std::string failure_of_prepare() {
    return message_of<IoError>([&] { units_.prepare(directory()); });
  }
  std::string failure_of_reading() {
    return message_of<IoError>([&] {
      LazyDevice device;
      NvmeStore(device, path(), units_.key, units_.sizes(), units_.options());
    });
  }

  test::TemporaryDirectory directory_;
  TestUnits units_{4};
};

TEST_F(SharedDisk, FilesAndFoldersAreForTheirOwnerAloneWhateverTheUmaskIs) {
  for (const mode_t mask : {0000, 0002, 0022, 0777}) {
    fs::create_directories(directory() / "made");
    const fs::path place = directory() / "made" / fmt::format("for-{:o}", mask);
    const fs::path file = shard_file_path(place, units_.key);
    EXPECT_EQ(message_of_child([&] {
                if (is_root()) {  // who is above permissions
                  ::umask(0);
                  ::chmod((directory() / "made").c_str(), 01777);
                  become(kNobody);
                }
                ::umask(mask);
                units_.prepare(place);
                units_.prepare(place);
              }),
              "");
    EXPECT_EQ(mode_of(place), 0700u) << mask;
    EXPECT_EQ(mode_of(file.parent_path()), 0700u) << mask;
    EXPECT_EQ(mode_of(file), 0600u) << mask;
    EXPECT_EQ(mode_of(file.string() + ".lock"), 0600u) << mask;
  }
}

TEST_F(SharedDisk, OnlyTheLastPartOfItsPathIsMade) {
  const auto refusal = [](const fs::path& place) {
    return message_of<IoError>([&] { check_shard_directory(place); });
  };
  const std::string none = "nothing was thrown";
  const fs::path missing = directory() / "mising";
  EXPECT_EQ(refusal(directory()), none);
  EXPECT_EQ(refusal(missing), none);
  EXPECT_EQ(refusal(missing / ""), none) << "with a / behind it";
  EXPECT_EQ(refusal("not-there"), none);
  for (const fs::path& place : {missing / "nvme", missing / "nvme" / ""}) {
    EXPECT_THAT(refusal(place), AllOf(HasSubstr("--nvme-offload-path " + place.string()),
                                      HasSubstr("there is no folder " + missing.string() + ";")));
    EXPECT_THAT(message_of<IoError>([&] { units_.prepare(place); }), HasSubstr("no folder"));
  }
  EXPECT_FALSE(fs::exists(missing));
  std::ofstream(missing) << "a file";
  EXPECT_THAT(refusal(missing), HasSubstr("is a plain file, a folder is needed there"));
  EXPECT_THAT(refusal(missing / "nvme"), HasSubstr(missing.string() + " is a plain file"));
}

TEST_F(SharedDisk, APathThatMayNotBeLookedAtIsNotCalledMissing) {
  const fs::path closed = directory() / "closed";
  fs::create_directories(closed / "there");
  set_mode(closed, 0);
  for (const fs::path& place : {closed / "there", closed / "new", closed / "no" / "nvme"}) {
    const std::string refusal = message_of_child([&] {
      if (is_root()) become(kNobody);
      check_shard_directory(place);
    });
    EXPECT_THAT(refusal, AllOf(HasSubstr("--nvme-offload-path " + place.string() +
                                         ": cannot examine " + place.string()),
                               HasSubstr("Permission denied; "), Not(HasSubstr("no folder"))));
  }
  set_mode(closed, 0700);
  const fs::path circle = directory() / "circle";
  fs::create_symlink(circle, circle);
  EXPECT_THAT(message_of<IoError>([&] { check_shard_directory(circle / "nvme"); }),
              HasSubstr("cannot examine " + (circle / "nvme").string() + ": Too many levels"));
}

TEST_F(SharedDisk, WhatOthersCouldOnlyReadIsUsedAndTakenFromThem) {
  units_.prepare(directory());
  set_mode(folder(), 0755);
  set_mode(path(), 0644);
  const int reads = units_.source.reads;
  units_.prepare(directory());
  EXPECT_EQ(units_.source.reads, reads);
  EXPECT_EQ(mode_of(folder()), 0700u);
  EXPECT_EQ(mode_of(path()), 0600u);
}

TEST_F(SharedDisk, AFileThatItsOwnerProtectsStaysSo) {
  units_.prepare(directory());
  set_mode(folder(), 0500);
  set_mode(path(), 0444);
  units_.prepare(directory());
  EXPECT_EQ(mode_of(folder()), 0500u);
  EXPECT_EQ(mode_of(path()), 0400u);
}

TEST_F(SharedDisk, WhatOthersCanWriteIsRefused) {
  units_.prepare(directory());
  for (const auto& [place, good] :
       std::vector<std::pair<fs::path, mode_t>>{{folder(), 0700}, {path(), 0600}}) {
    for (const mode_t mode : {good | 0020u, good | 0002u, 0777u}) {
      set_mode(place, mode);
      const auto refusal =
          AllOf(HasSubstr(place.string() + " can be written by others"),
                HasSubstr(fmt::format("mode {:04o}", mode)), HasSubstr("chmod -R go-w"));
      EXPECT_THAT(failure_of_prepare(), refusal);
      EXPECT_THAT(failure_of_reading(), refusal);
      EXPECT_EQ(mode_of(place), mode) << "it hides what others may have done";
    }
    set_mode(place, good);
  }
  EXPECT_EQ(failure_of_prepare(), "nothing was thrown");
  fs::remove(path());
  set_mode(lock(), 0666);
  EXPECT_THAT(failure_of_prepare(), HasSubstr("rank-1.shard.lock can be written by others"));
}

TEST_F(SharedDisk, WhatBelongsToAnotherUserIsRefused) {
  if (!is_root()) GTEST_SKIP() << "only root can give files away";
  units_.prepare(directory());
  for (const fs::path& place : {folder(), path()}) {
    give_to(place, kNobody);
    const auto refusal =
        AllOf(HasSubstr(place.string() + " belongs to user 65534"),
              HasSubstr("this job runs as user 0"), HasSubstr("--nvme-offload-path"));
    EXPECT_THAT(failure_of_prepare(), refusal);
    EXPECT_THAT(failure_of_reading(), refusal);
    give_to(place, 0);
  }
  fs::remove(path());
  give_to(lock(), kNobody);
  EXPECT_THAT(failure_of_prepare(), HasSubstr("rank-1.shard.lock belongs to user 65534"));
}

TEST_F(SharedDisk, AFolderThatAnotherUserMadeBeforeIsRefusedAndNothingIsWrittenThere) {
  if (!is_root()) GTEST_SKIP() << "only root can act as another user";
  ASSERT_EQ(message_of_child([&] {
              become(kNobody);
              ::umask(0);
              fs::create_directory(folder());
            }),
            "");
  EXPECT_THAT(failure_of_prepare(), HasSubstr("belongs to user 65534"));
  EXPECT_TRUE(fs::is_empty(folder()));
}

TEST_F(SharedDisk, WhatRootWroteIsReadByOthersWhereRootLetsThem) {
  if (!is_root()) GTEST_SKIP() << "only root can write as root";
  units_.prepare(directory());
  const auto as_nobody = [&] {
    return message_of_child([&] {
      become(kNobody);
      units_.prepare(directory());
      LazyDevice device;
      NvmeStore(device, path(), units_.key, units_.sizes(), units_.options());
    });
  };
  EXPECT_THAT(as_nobody(), AllOf(HasSubstr("Permission denied"), HasSubstr("--nvme-offload-path")));
  set_mode(folder(), 0755);
  set_mode(path(), 0644);
  EXPECT_EQ(as_nobody(), "");
}

TEST_F(SharedDisk, WhatIsNoPlainFileIsRefusedAtOnce) {
  units_.prepare(directory());
  const fs::path elsewhere = directory() / "elsewhere";
  fs::copy_file(path(), elsewhere);
  for (const Kind& kind : foreign_kinds()) {
    for (const fs::path& place : {path(), lock()}) {
      fs::remove(path());
      fs::remove(lock());
      if (!kind.make(place, elsewhere)) continue;  // a device: only root can
      const auto refused = AllOf(HasSubstr(place.string() + " " + kind.text),
                                 HasSubstr("a plain file is needed"), HasSubstr("remove it"));
      EXPECT_THAT(message_of_child([&] { units_.prepare(directory()); }, 10), refused);
      if (place == path()) {
        EXPECT_THAT(message_of_child([&] { OpenShardFile::open(path()); }, 10), refused);
      }
    }
  }
}

TEST_F(SharedDisk, AFolderInThePlaceOfAFileIsRefused) {
  fs::create_directories(path());
  set_mode(folder(), 0700);
  EXPECT_THAT(failure_of_prepare(), HasSubstr("rank-1.shard is a folder, a plain file is needed"));
}

TEST_F(SharedDisk, WhatIsNoFolderIsRefusedAtOnce) {
  units_.prepare(directory());
  const fs::path elsewhere = directory() / "elsewhere";
  fs::rename(folder(), elsewhere);
  for (const Kind& kind : foreign_kinds()) {
    fs::remove(folder());
    if (!kind.make(folder(), elsewhere)) continue;
    const auto refused = AllOf(HasSubstr(folder().string() + " " + kind.text),
                               HasSubstr("a folder is needed"), HasSubstr("remove it"));
    EXPECT_THAT(message_of_child([&] { units_.prepare(directory()); }, 10), refused);
    EXPECT_THAT(message_of_child([&] { OpenShardFile::open(path()); }, 10), refused);
  }
  fs::remove(folder());
  fs::rename(elsewhere, folder());
  EXPECT_EQ(failure_of_prepare(), "nothing was thrown");
}

TEST_F(SharedDisk, AFolderThatIsSwappedWhileItIsUsedLeadsNowhereElse) {
  const fs::path moved = directory() / "moved";
  const fs::path trap = directory() / "trap";
  fs::create_directory(trap);
  bool swapped = false;
  units_.prepare(directory(), 0, 4, [&](std::size_t) {
    if (std::exchange(swapped, true)) return;
    fs::rename(folder(), moved);
    fs::create_directory_symlink(trap, folder());
  });
  EXPECT_TRUE(fs::is_empty(trap)) << "the file was put where a symbolic link leads";
  EXPECT_EQ(files_in(moved), std::vector<std::string>{"rank-1.shard"});
  EXPECT_THAT(failure_of_reading(), HasSubstr("is a symbolic link"));
  EXPECT_THAT(failure_of_prepare(), HasSubstr("is a symbolic link"));
}

TEST_F(SharedDisk, ADirectoryThatEverybodyCanWriteIsUsedAndSoIsALinkToIt) {
  const fs::path link = directory() / "link";
  const fs::path open = directory() / "open";
  fs::create_directory(open);
  set_mode(open, 0777);
  if (is_root()) give_to(open, kNobody);
  fs::create_directory_symlink(open, link);
  units_.key.rank = 0;                           // which speaks for the job
  for (const char* time : {"first", "again"}) {  // made, and found
    testing::internal::CaptureStderr();
    units_.prepare(link);
    EXPECT_THAT(testing::internal::GetCapturedStderr(),
                HasSubstr("link can be written by everybody and is not sticky (mode 0777)"))
        << time;
  }
  EXPECT_EQ(mode_of(open), 0777u) << "it is not ours to change";
  for (const mode_t quiet : {01777, 0775, 0755}) {
    set_mode(open, quiet);
    testing::internal::CaptureStderr();
    units_.prepare(link);
    EXPECT_EQ(testing::internal::GetCapturedStderr().find("sticky"), std::string::npos) << quiet;
  }
  EXPECT_EQ(mode_of(shard_file_path(open, units_.key).parent_path()), 0700u);
}

TEST_F(SharedDisk, AFileWithASecondNameKeepsItsBytesWhenItIsReplaced) {
  units_.prepare(directory(), 0, 2);
  const fs::path second = directory() / "second";
  fs::create_hard_link(path(), second);
  const auto size = fs::file_size(second);
  units_.prepare(directory());
  EXPECT_EQ(fs::file_size(second), size);
  EXPECT_GT(fs::file_size(path()), size);
}

TEST_F(SharedDisk, FilesOfAnEarlierVersionAreReadFromADiskThatCannotBeWritten) {
  const fs::path disk = directory() / "disk";
  fs::create_directories(disk);
  if (::mount("none", disk.c_str(), "tmpfs", 0, "size=8m") != 0) {
    GTEST_SKIP() << "no right to mount a tmpfs";
  }
  const fs::path file = units_.prepare(disk);
  set_mode(file.parent_path(), 0755);
  set_mode(file, 0644);
  std::ofstream(file.string() + ".tmp") << "left";
  ASSERT_EQ(::mount("none", disk.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, nullptr), 0);
  testing::internal::CaptureStderr();
  const std::string message = message_of<IoError>([&] {
    units_.prepare(disk);
    LazyDevice device;
    NvmeStore(device, file, units_.key, units_.sizes(), units_.options());
  });
  const std::string warning = testing::internal::GetCapturedStderr();
  ::umount2(disk.c_str(), MNT_DETACH);
  EXPECT_EQ(message, "nothing was thrown");
  EXPECT_THAT(warning, AllOf(HasSubstr("rank-1.shard.tmp stays"), HasSubstr("Read-only")));
}

}  // namespace
}  // namespace zi
