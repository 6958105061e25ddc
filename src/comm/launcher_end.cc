#include "comm/launcher_end.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <sstream>
#include <string>

extern char** environ;

namespace zi {
namespace {

constexpr int kMostAncestors = 16;  // shells and wrappers between mpirun and this process

struct Process {
  std::string name;
  int parent = 0;
};

/// `PID (NAME) STATE PARENT ..`; the name may hold anything.
Process process(int pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string line;
  std::getline(file, line);
  const std::size_t open = line.find('('), close = line.rfind(')');
  if (open == std::string::npos || close == std::string::npos) return {};
  Process out{.name = line.substr(open + 1, close - open - 1)};
  std::string state;
  std::istringstream(line.substr(close + 1)) >> state >> out.parent;
  return out;
}

/// The mpirun above this process; 0: another launcher has started it.
int mpirun_pid() {
  int pid = ::getppid();
  for (int i = 0; i < kMostAncestors && pid > 1; ++i) {
    const Process p = process(pid);
    if (p.name == "mpirun" || p.name == "mpiexec" || p.name == "orterun") return pid;
    if (p.name == "orted" || p.name == "slurmstepd") return 0;
    pid = p.parent;
  }
  return 0;
}

}  // namespace

void end_launcher_after(std::chrono::seconds patience) {
  const int pid = mpirun_pid();
  if (pid == 0) return;
  // Spawned and not forked: a fork copies the page tables of a process with much memory. The name
  // is looked at again, because the number may be another process's by then.
  const std::string script = fmt::format(
      "sleep {}; read -r name </proc/{}/comm && "
      "case $name in mpirun|mpiexec|orterun) kill -KILL {} ;; esac",
      patience.count(), pid, pid);
  std::string shell = "sh", flag = "-c", text = script;
  const std::array<char*, 4> argv = {shell.data(), flag.data(), text.data(), nullptr};
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
  }
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);  // mpirun kills the ranks' groups
  pid_t child = -1;
  ::posix_spawn(&child, "/bin/sh", &files, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
}

}  // namespace zi
