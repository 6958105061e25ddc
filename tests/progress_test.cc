#include "base/progress.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>

#include "base/file_descriptor.h"

namespace zi {
namespace {

using std::chrono::milliseconds;

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

  static Progress::Clock::time_point now() { return now_; }
  static void pass(std::chrono::milliseconds time) { now_ += time; }

  inline static Progress::Clock::time_point now_;

  Terminal terminal_;
};

TEST_F(ProgressTest, ShowsRateAndTimeLeftOnATerminalAndCleansUp) {
  {
    Progress progress("loading weights", 4 * kGigabyte, Progress::Unit::kBytes, true, now);
    pass(milliseconds(1000));
    progress.add(kGigabyte);
    EXPECT_EQ(terminal_.read(), "\r\x1b[Kloading weights: 1.00 GB of 4.00 GB, 1.00 GB/s, 3 s left");
  }
  EXPECT_EQ(terminal_.read(), "\r\x1b[K");
}

TEST_F(ProgressTest, CountsItemsAndSaysNothingOfATotalThatIsNotKnown) {
  Progress progress("prompts", 0, Progress::Unit::kItems, true, now);
  pass(milliseconds(1000));
  progress.add(3);
  EXPECT_EQ(terminal_.read(), "\r\x1b[Kprompts: 3, 3.0/s");
}

TEST_F(ProgressTest, SaysNothingOfShortWorkOrWhereItIsNotShown) {
  {
    Progress hidden("loading weights", 4 * kGigabyte, Progress::Unit::kBytes, false, now);
    Progress shown("loading weights", 4 * kGigabyte, Progress::Unit::kBytes, true, now);
    pass(milliseconds(999));
    shown.add(kGigabyte);
    pass(milliseconds(1));
    hidden.add(kGigabyte);
  }
  EXPECT_EQ(terminal_.read(), "");
}

}  // namespace
}  // namespace zi
