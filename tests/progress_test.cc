#include "base/progress.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "base/file_descriptor.h"

namespace zi {
namespace {

using ::testing::MatchesRegex;

constexpr std::size_t kGigabyte = 1'000'000'000;

/// Makes stderr a terminal, and collects what is written there.
class Terminal {
 public:
  Terminal() : screen_(::posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK)), stderr_(::dup(2)) {
    if (::grantpt(screen_.get()) != 0 || ::unlockpt(screen_.get()) != 0) return;
    const FileDescriptor keyboard(::open(::ptsname(screen_.get()), O_RDWR | O_NOCTTY));
    works_ = keyboard.is_open() && ::dup2(keyboard.get(), 2) == 2;
  }
  ~Terminal() { ::dup2(stderr_.get(), 2); }

  bool works() const { return works_; }
  /// What was written since the last call.
  std::string read() {
    std::string text(4096, '\0');
    const ssize_t got = ::read(screen_.get(), text.data(), text.size());
    text.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    return text;
  }

 private:
  FileDescriptor screen_;
  FileDescriptor stderr_;
  bool works_ = false;
};

class ProgressTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!terminal_.works()) GTEST_SKIP() << "this system gives no pseudo-terminal";
    ::unsetenv("OMPI_COMM_WORLD_RANK");  // under mpirun its terminal would decide
  }

  static void pass_the_first_second() {
    std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  }

  Terminal terminal_;
};

TEST_F(ProgressTest, ShowsRateAndTimeLeftOnATerminalAndCleansUp) {
  {
    Progress progress("loading weights", 4 * kGigabyte, Progress::Unit::kBytes, true);
    pass_the_first_second();
    progress.add(kGigabyte);
    EXPECT_THAT(
        terminal_.read(),
        MatchesRegex(".*loading weights: 1.00 GB of 4.00 GB, [0-9.]+ .B/s, [0-9:]+ [a-z]+ left"));
  }
  EXPECT_EQ(terminal_.read(), "\r\x1b[K");
}

TEST_F(ProgressTest, CountsItemsAndSaysNothingOfATotalThatIsNotKnown) {
  Progress progress("prompts", 0, Progress::Unit::kItems, true);
  pass_the_first_second();
  progress.add(3);
  EXPECT_THAT(terminal_.read(), MatchesRegex(".*prompts: 3, [0-9.]+/s"));
}

TEST_F(ProgressTest, SaysNothingOfShortWorkOrWhereItIsNotShown) {
  {
    Progress hidden("loading weights", 4 * kGigabyte, Progress::Unit::kBytes, false);
    Progress shown("loading weights", 4 * kGigabyte, Progress::Unit::kBytes, true);
    shown.add(kGigabyte);
    pass_the_first_second();
    hidden.add(kGigabyte);
  }
  EXPECT_EQ(terminal_.read(), "");
}

}  // namespace
}  // namespace zi
