#include "base/output_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "base/file_descriptor.h"
#include "open_files.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr auto kReplace = OutputFile::Mode::kReplace;
constexpr auto kAppend = OutputFile::Mode::kAppend;

class OutputFileTest : public testing::Test {
 protected:
  OutputFileTest() {
    std::string name = testing::TempDir() + "zi-output-XXXXXX";
    directory_ = ::mkdtemp(name.data());
  }
  ~OutputFileTest() override { std::filesystem::remove_all(directory_); }
  std::filesystem::path path() const { return directory_ / "out"; }
  void put(const std::string& text) const { std::ofstream(path(), std::ios::binary) << text; }
  std::string content() const {
    std::ostringstream text;
    text << std::ifstream(path(), std::ios::binary).rdbuf();
    return text.str();
  }
  OutputFile open(OutputFile::Mode mode = kReplace) const {
    return OutputFile(path(), "--output", mode, milliseconds(50));
  }
  std::string refusal(OutputFile::Mode mode = kReplace) const {
    try {
      open(mode);
    } catch (const IoError& error) {
      return error.what();
    }
    return "opened";
  }
  std::filesystem::path directory_;
};

TEST_F(OutputFileTest, DropsWhatStandsThereWithTheFirstWriteOnly) {
  put("old content");
  {
    const OutputFile file = open();
    EXPECT_EQ(file.size(), 11);
  }
  EXPECT_EQ(content(), "old content");
  OutputFile file = open();
  file.write("new\n");
  EXPECT_EQ(content(), "new\n");
  file.write("line\n");
  EXPECT_EQ(content(), "new\nline\n");
}

TEST_F(OutputFileTest, LeavesWhatStandsInTheFileOfStandardOutput) {
  // `>> out`, or another program's output before.
  put("before\n");
  const int before = ::dup(STDOUT_FILENO);
  const FileDescriptor redirected(::open(path().c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
  ASSERT_GE(::dup2(redirected.get(), STDOUT_FILENO), 0);
  OutputFile("-", "--output", kReplace).write("line\n");
  ::dup2(before, STDOUT_FILENO);
  ::close(before);
  EXPECT_EQ(content(), "before\nline\n");
}

TEST_F(OutputFileTest, AppendsAndReadsWhatIsThere) {
  put("one\n");
  OutputFile file = open(kAppend);
  const FileDescriptor reader = file.open_for_reading();
  char bytes[8] = {};
  EXPECT_EQ(::read(reader.get(), bytes, sizeof(bytes)), 4);
  EXPECT_STREQ(bytes, "one\n");
  file.write("two\n");
  EXPECT_EQ(content(), "one\ntwo\n");
}

TEST_F(OutputFileTest, TakesAwayAFileThatItMadeInVain) {
  { const OutputFile file = open(); }
  EXPECT_FALSE(std::filesystem::exists(path()));
  {
    OutputFile file = open();
    file.keep();
  }
  EXPECT_TRUE(std::filesystem::exists(path())) << "an empty result is a result";
  { const OutputFile file = open(); }
  EXPECT_TRUE(std::filesystem::exists(path())) << "it was there before";
}

TEST_F(OutputFileTest, TakesAwayTheTargetOfALinkAndNotTheLink) {
  const auto target = directory_ / "target";
  std::filesystem::create_symlink(target, path());
  { const OutputFile file = open(); }
  EXPECT_FALSE(std::filesystem::exists(target));
  EXPECT_TRUE(std::filesystem::is_symlink(path()));
}

TEST_F(OutputFileTest, WaitsABoundedTimeForAnotherJob) {
  std::optional<OutputFile> first(open());
  EXPECT_THAT(refusal(), HasSubstr("another job is writing this file"));
  EXPECT_THAT(refusal(kAppend), HasSubstr("another job is writing this file"));
  first->write("first\n");
  std::thread ends_soon([&] {
    EXPECT_TRUE(test::wait_until([&] { return test::times_open(path()) == 2; }));
    first.reset();
  });
  OutputFile second(path(), "--output", kAppend, milliseconds(20'000));
  ends_soon.join();
  EXPECT_EQ(second.size(), 6);
}

TEST_F(OutputFileTest, SaysWhenTheFileIsRemovedWhileItIsWritten) {
  OutputFile file(path(), "--output", OutputFile::Mode::kReplace);
  file.write("one\n");
  std::filesystem::rename(path(), path().string() + ".moved");
  file.write("two\n");  // it is still somewhere
  std::filesystem::remove(path().string() + ".moved");
  EXPECT_THAT([&] { file.write("three\n"); },
              ThrowsMessage<IoError>(HasSubstr("--output was removed while it was written")));
}

TEST_F(OutputFileTest, WritesAFileThatNeverHadAName) {
  const FileDescriptor unnamed(::memfd_create("out", MFD_CLOEXEC));
  const std::string path = "/proc/self/fd/" + std::to_string(unnamed.get());
  OutputFile file(path, "--output", OutputFile::Mode::kReplace);
  file.write("one\n");
  file.write("two\n");
  EXPECT_EQ(file.size(), 8);
}

TEST_F(OutputFileTest, LocksTheFileThatThePathLeadsToInTheEnd) {
  std::optional<OutputFile> first(open());
  std::thread ends_soon([&] {
    EXPECT_TRUE(test::wait_until([&] { return test::times_open(path()) == 2; }));
    first.reset();  // which takes away the empty file, for whose lock the second waits
  });
  OutputFile second(path(), "--output", kReplace, milliseconds(20'000));
  ends_soon.join();
  second.write("second\n");
  EXPECT_EQ(content(), "second\n");
  EXPECT_THAT(refusal(), HasSubstr("another job is writing this file"));
}

TEST_F(OutputFileTest, KeepsItsLockFromProgramsThatItStarts) {
  put("old content");  // else the file goes, and its lock with it
  {
    const OutputFile file = open();
    ASSERT_EQ(std::system("sleep 2 &"), 0);
  }
  EXPECT_EQ(refusal(), "opened");
}

TEST_F(OutputFileTest, KeepsTheOldContentWhenThereIsNoRoomForTheNew) {
  // A file in memory that may not grow stands in for a full disk.
  const FileDescriptor memory(::memfd_create("full", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::write(memory.get(), "old content", 11), 11);
  ASSERT_EQ(::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_GROW), 0);
  OutputFile file("/proc/self/fd/" + std::to_string(memory.get()), "--output", kReplace);
  EXPECT_THROW(file.write("more than was there"), IoError);
  char bytes[16] = {};
  EXPECT_EQ(::pread(memory.get(), bytes, sizeof(bytes), 0), 11);
  EXPECT_STREQ(bytes, "old content");
}

TEST_F(OutputFileTest, WritesAllOfATextOrNothing) {
  // A limit on the size of files stands in for a disk that fills up in mid-line.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{64, before.rlim_max};
  OutputFile file = open();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  file.write("fits\n");
  EXPECT_THROW(file.write(std::string(100, 'x')), IoError);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(content(), "fits\n");
}

TEST_F(OutputFileTest, RefusesAFifoThatNobodyReadsInsteadOfWaiting) {
  ASSERT_EQ(::mkfifo(path().c_str(), 0600), 0);
  EXPECT_THAT(refusal(), HasSubstr("nothing reads this FIFO"));
  EXPECT_THAT(refusal(kAppend), HasSubstr("--resume needs a regular file"));
}

TEST_F(OutputFileTest, WritesAFifoWithoutEndingItsReaderFirst) {
  ASSERT_EQ(::mkfifo(path().c_str(), 0600), 0);
  const FileDescriptor reader(::open(path().c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  OutputFile file = open();
  file.write("line\n");
  char bytes[8] = {};
  EXPECT_EQ(::read(reader.get(), bytes, sizeof(bytes)), 5);
  EXPECT_STREQ(bytes, "line\n");
}

TEST_F(OutputFileTest, NamesWhatCannotBeWritten) {
  EXPECT_THAT([] { OutputFile("/nonexistent/out", "--trace", kReplace); },
              testing::ThrowsMessage<IoError>(HasSubstr(
                  "/nonexistent/out: --trace cannot be written: No such file or directory")));
  std::filesystem::create_directory(path());
  EXPECT_THAT(refusal(), HasSubstr("--output cannot be written: Is a directory"));
}

}  // namespace
}  // namespace zi
