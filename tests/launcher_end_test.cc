// The mpirun above a rank is ended, by whichever name it was called.

#include "comm/launcher_end.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <thread>

#include "base/file_descriptor.h"

namespace zi::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// A process of that name with a child, which ends it as a rank does and then waits for that, but
/// no longer than `most`. How it ended, as waitpid says it; with code 3 when the child has waited
/// in vain. `patience`: of the child.
int end_of(const char* name, milliseconds most, seconds patience = seconds(0)) {
  const pid_t launcher = ::fork();
  if (launcher == 0) {
    ::prctl(PR_SET_NAME, name);
    const pid_t self = ::getpid();
    const pid_t rank = ::fork();
    if (rank == 0) {
      end_launcher_after(patience);
      const auto end = std::chrono::steady_clock::now() + most;
      while (::getppid() == self && std::chrono::steady_clock::now() < end) {
        std::this_thread::sleep_for(milliseconds(10));
      }
      ::_exit(0);
    }
    ::waitpid(rank, nullptr, 0);
    ::_exit(3);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(launcher, &status, 0), launcher);
  return status;
}

TEST(LauncherEnd, IsRecognisedByTheNamesThatDistributionsGiveIt) {
  for (const char* name : {"mpirun", "mpiexec", "orterun", "mpirun.openmpi", "mpiexec.openmpi"}) {
    const int status = end_of(name, seconds(60));
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << name << ": " << status;
  }
}

TEST(LauncherEnd, ALauncherOfAnotherKindIsLeftAlone) {
  // Nor is one above it sought: this test may run under one.
  const int status = end_of("slurmstepd", milliseconds(500));
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 3) << status;
}

TEST(LauncherEnd, WhoWaitsForItHoldsNoFileOfTheJobOpen) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  const FileDescriptor reads(ends[0]);
  FileDescriptor writes(ends[1]);
  // The launcher ends first here, and the one that waits for it is still there.
  const int status = end_of("mpirun", milliseconds(0), seconds(30));
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 3) << status;
  writes.close();
  pollfd end{reads.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&end, 1, 20'000), 1) << "the other end is open";
}

}  // namespace
}  // namespace zi::test
