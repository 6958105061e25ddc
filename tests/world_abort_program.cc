// Ends a job in the way that its argument names; the exit status of mpirun is the result.
//   abort     one rank calls abort(7) while the others wait for it: the job's status is 7
//   leave     an exception destroys one rank's World while the others wait: the job must not hang,
//             status 1
//   together  all_or_none throws on every rank and destroys every World: all finalise, status 0
//   stuck     a step of run_together throws on one rank while the others never leave it: status 1
//   stopped   one rank is stopped by SIGSTOP while the others wait for it: a HostWatch ends the
//             job, with its name, status 1
//   unread    the same, and nobody reads what the ranks say: the job ends all the same

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <optional>

#include "comm/together.h"
#include "zero_infer/error.h"
#include "zero_infer/host_watch.h"
#include "zero_infer/world.h"

namespace {

/// Whoever writes to stderr from now on waits for ever.
void fill_stderr() {
  int ends[2];
  if (::pipe(ends) != 0 || ::fcntl(ends[1], F_SETFL, O_NONBLOCK) != 0) ::_exit(4);
  const char zero = 0;
  while (::write(ends[1], &zero, 1) == 1) continue;
  ::fcntl(ends[1], F_SETFL, 0);
  ::dup2(ends[1], STDERR_FILENO);
}

void run(zi::World& world, const char* mode) {
  const bool last = world.rank() == world.size() - 1;
  if (std::strcmp(mode, "together") == 0) {
    world.all_or_none([&] {
      if (last) throw zi::ConfigError("as asked");
    });
  }
  std::optional<zi::HostWatch> watch;
  const bool unread = std::strcmp(mode, "unread") == 0;
  if (std::strcmp(mode, "stopped") == 0 || unread) {
    if (unread) fill_stderr();
    watch.emplace(world, zi::HostWatch::Options{.limit = std::chrono::seconds(1), .advice = {}});
    if (last) raise(SIGSTOP);
  }
  if (std::strcmp(mode, "stuck") == 0) {
    zi::run_together(
        world,
        [&] {
          if (last) throw zi::ConfigError("as asked");
          while (true) pause();
        },
        nullptr, std::chrono::milliseconds(100));
  }
  if (last && std::strcmp(mode, "abort") == 0) world.abort(7);
  if (last) throw zi::ConfigError("as asked");
  world.barrier();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const char* mode = argv[1];
  try {
    zi::World world(&argc, &argv);
    run(world, mode);
  } catch (const zi::Error&) {
    return 0;
  }
  return 3;
}
