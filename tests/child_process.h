#pragma once

// Calls in a process of their own: as another user, with a system call that is refused, or killed
// at any of them.

#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/system_error.h"

namespace zi::test {

/// A user that owns nothing, for tests that root runs.
inline constexpr uid_t kNobody = 65534;

/// What the call threw in a child process; empty when it returned. A child that hangs is ended by
/// SIGALRM, and what ended it by a signal is said.
inline std::string message_of_child(const std::function<void()>& call, unsigned seconds = 60) {
  int ends[2];
  if (::pipe(ends) != 0) return "no pipe";
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(seconds);
    std::string message;
    try {
      call();
    } catch (const std::exception& failure) {
      message = failure.what();
    }
    const bool told =
        ::write(ends[1], message.data(), message.size()) == static_cast<ssize_t>(message.size());
    std::_Exit(told ? 0 : 1);
  }
  ::close(ends[1]);
  std::string message;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
    message.append(buffer, static_cast<std::size_t>(got));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) message += "ended by signal " + std::to_string(WTERMSIG(status));
  return message;
}

/// Makes this process one of that user, for good: for a child.
inline void become(uid_t user) {
  if (::setgroups(0, nullptr) != 0 || ::setresgid(user, user, user) != 0 ||
      ::setresuid(user, user, user) != 0) {
    throw std::runtime_error(system_error_text("the user", "cannot be changed", errno));
  }
}

/// From now on this process gets `error` from the system call `number`, where its argument
/// `argument` has one of the bits of `mask` (0: always): for a child.
inline void refuse_call(long number, int error, unsigned argument = 0, std::uint32_t mask = 0) {
  const auto jump = [](unsigned code, std::uint32_t k, unsigned yes, unsigned no) {
    return sock_filter{static_cast<std::uint16_t>(BPF_JMP | code | BPF_K),
                       static_cast<std::uint8_t>(yes), static_cast<std::uint8_t>(no), k};
  };
  const auto load = [](std::size_t offset) {
    return sock_filter{BPF_LD | BPF_W | BPF_ABS, 0, 0, static_cast<std::uint32_t>(offset)};
  };
  const auto end = [](std::uint32_t action) { return sock_filter{BPF_RET | BPF_K, 0, 0, action}; };
  // Little-endian: the lower half of an argument stands first.
  std::vector<sock_filter> filter = {
      load(offsetof(seccomp_data, nr)),
      jump(BPF_JEQ, static_cast<std::uint32_t>(number), 0, 3),
      load(offsetof(seccomp_data, args) + argument * sizeof(std::uint64_t)),
      mask != 0 ? jump(BPF_JSET, mask, 0, 1) : jump(BPF_JA, 0, 0, 0),
      end(SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(error)),
      end(SECCOMP_RET_ALLOW)};
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0) {
    throw std::runtime_error(system_error_text("seccomp", "cannot refuse a call", errno));
  }
}

/// As on a file system that makes no files without a name: for a child.
inline void refuse_unnamed_files() {
  refuse_call(SYS_openat, EOPNOTSUPP, 2, O_TMPFILE & ~O_DIRECTORY);
}

enum class Killed { kYes, kEndedBefore, kNotTraced };

/// Whether the call that is being entered may change what is on a disk. The others (memory, locks
/// of threads, clocks) are not the same in every child: a sanitizer or an allocator makes some of
/// them when it likes to. A kill at one of those leaves what a kill at the next of these leaves.
/// write() is left out too: messages go through it, and UBSan asks it by a pipe whether an address
/// can be read.
inline bool may_change_files(const __ptrace_syscall_info& info) {
  switch (info.entry.nr) {
    case SYS_openat:
      return (info.entry.args[2] & (O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY))) != 0;
#ifdef SYS_mkdir  // the names that only older architectures have
    case SYS_mkdir:
    case SYS_chmod:
    case SYS_link:
    case SYS_unlink:
    case SYS_rename:
#endif
#ifdef SYS_renameat
    case SYS_renameat:
#endif
    case SYS_renameat2:
    case SYS_mkdirat:
    case SYS_linkat:
    case SYS_unlinkat:
    case SYS_fchmod:
    case SYS_fchmodat:
    case SYS_fchown:
    case SYS_flock:
    case SYS_fallocate:
    case SYS_ftruncate:
    case SYS_pwrite64:
    case SYS_pwritev:
    case SYS_fsync:
    case SYS_fdatasync:
      return true;
    default:
      return false;
  }
}

/// Runs the call in a child that is killed (SIGKILL) as it enters, for the time number `count` (the
/// first being 0), a system call that may change files; those of threads that it starts are not
/// counted. A signal that comes meanwhile is delivered and not counted. Throws when the call throws
/// or a signal ends it.
inline Killed kill_at_call(int count, const std::function<void()>& call) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) std::_Exit(77);
    ::raise(SIGSTOP);
    try {
      call();
    } catch (const std::exception& failure) {
      std::fprintf(stderr, "%s\n", failure.what());
      std::_Exit(1);
    }
    std::_Exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFEXITED(status)) return Killed::kNotTraced;
  // A stop at a system call is then told from one for a signal.
  ::ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD);
  for (int entered = 0, signal = 0; entered <= count;) {
    if (::ptrace(PTRACE_SYSCALL, child, nullptr, signal) != 0) break;
    ::waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return Killed::kEndedBefore;
    if (!WIFSTOPPED(status)) {
      throw std::runtime_error("before its change number " + std::to_string(count) +
                               " of a file the child ended with wait status " +
                               std::to_string(status));
    }
    const bool at_call = WSTOPSIG(status) == (SIGTRAP | 0x80);
    signal = at_call ? 0 : WSTOPSIG(status);
    __ptrace_syscall_info info{};
    if (at_call && ::ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info) > 0 &&
        info.op == PTRACE_SYSCALL_INFO_ENTRY && may_change_files(info)) {
      ++entered;
    }
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
  return Killed::kYes;
}

}  // namespace zi::test
