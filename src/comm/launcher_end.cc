#include "comm/launcher_end.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>

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

/// `mpirun`, or `mpirun.openmpi` where several MPI libraries are installed; the name of a process
/// is cut to 15 characters.
bool is_launcher(const std::string& name) {
  const std::string stem = name.substr(0, name.find('.'));
  return stem == "mpirun" || stem == "mpiexec" || stem == "orterun" || stem == "prterun";
}

/// The name of its program's file, which may be called by another; empty where it is not ours to
/// see.
std::string file_name(int pid) {
  std::error_code hidden;
  return std::filesystem::read_symlink(fmt::format("/proc/{}/exe", pid), hidden).filename();
}

struct Launcher {
  int pid = 0;
  std::string name;
};

/// The mpirun above this process; pid 0: another launcher has started it.
Launcher find_launcher() {
  int pid = ::getppid();
  for (int i = 0; i < kMostAncestors && pid > 1; ++i) {
    const Process p = process(pid);
    if (is_launcher(p.name) || is_launcher(file_name(pid))) return {.pid = pid, .name = p.name};
    if (p.name == "orted" || p.name == "prted" || p.name == "slurmstepd") return {};
    pid = p.parent;
  }
  return {};
}

}  // namespace

void end_launcher_after(std::chrono::seconds patience) {
  const Launcher launcher = find_launcher();
  if (launcher.pid == 0) return;
  // Spawned and not forked: a fork copies the page tables of a process with much memory. The name
  // is looked at again, because the number may be another process's by then.
  std::string shell = "sh", flag = "-c";
  std::string script =
      "sleep \"$1\"; read -r name <\"/proc/$2/comm\" && [ \"$name\" = \"$3\" ] && kill -KILL "
      "\"$2\"";
  std::string time = std::to_string(patience.count()), pid = std::to_string(launcher.pid);
  std::string name = launcher.name;
  const std::array<char*, 8> argv = {shell.data(), flag.data(), script.data(), shell.data(),
                                     time.data(),  pid.data(),  name.data(),   nullptr};
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
  }
  // Sockets and locks of the job, which would outlive it.
  posix_spawn_file_actions_addclosefrom_np(&files, STDERR_FILENO + 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);  // mpirun kills the ranks' groups
  pid_t child = -1;
  ::posix_spawn(&child, "/bin/sh", &files, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
}

}  // namespace zi
