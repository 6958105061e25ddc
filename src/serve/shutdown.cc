#include "serve/shutdown.h"

#include <fmt/format.h>
#include <signal.h>

#include <cstdlib>
#include <utility>

#include "zero_infer/log.h"

namespace zi {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPoll(20);
constexpr std::chrono::milliseconds kErrorFlush(300);  // mpirun may kill this rank in a second
constexpr std::chrono::milliseconds kLeavePatience(2000);
constexpr int kRankGone = 1;  // exit code

const char* name_of_stop(int signal) {
  return signal == SIGINT ? "SIGINT" : signal == SIGTERM ? "SIGTERM" : "SIGUSR1";
}

}  // namespace

Shutdown::Shutdown(World& world, Server& server, const HostWatch& watch, StopSignals signals)
    : world_(&world),
      server_(&server),
      watch_(&watch),
      signals_(std::move(signals)),
      thread_([this] { run(); }) {}

Shutdown::~Shutdown() {
  {
    const std::scoped_lock lock(mutex_);
    finished_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

bool Shutdown::wait_until(Clock::time_point end) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, end, [this] { return finished_; });
}

bool Shutdown::wait_a_little() { return wait_until(Clock::now() + kPoll); }

void Shutdown::run() {
  while (signals_.count() == 0 && watch_->gone() < 0) {
    if (wait_a_little()) return;
  }
  server_->drain();
  if (watch_->gone() < 0) {
    const std::chrono::milliseconds drain = signals_.drain(signals_.last());
    log_info(fmt::format("{}: no new requests; the {} that are open have {:.1f} s to end",
                         name_of_stop(signals_.last()), server_->open(),
                         std::chrono::duration<double>(drain).count()));
    const Clock::time_point end = Clock::now() + drain;
    while (signals_.count() < 2 && Clock::now() < end && watch_->gone() < 0) {
      if (wait_a_little()) return;
    }
  }
  const int gone = watch_->gone();
  const std::size_t open = server_->open();
  server_->abandon(gone >= 0 ? ApiError::failed(fmt::format("rank {} of the server is gone", gone))
                             : ApiError::stopped());
  if (gone >= 0) log_error(fmt::format("rank {} is gone", gone));
  if (open > 0) log_warning(fmt::format("{} open requests were ended with an error", open));
  if (gone < 0) leave_ = signals_.last();
  server_->flush(kErrorFlush);
  if (wait_until(Clock::now() + kLeavePatience)) return;
  end_job(gone >= 0 ? kRankGone : 128 + signals_.last());
}

void Shutdown::end_job(int code) {
  if (code != kRankGone) {
    log_error("a pass takes too long to wait for its end; ending the job");
  }
  if (world_->size() > 1) world_->abort(code);
  std::_Exit(code);
}

}  // namespace zi
