#include "serve/shutdown.h"

#include <fmt/format.h>
#include <string.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>

#include "zero_infer/log.h"

namespace zi {
namespace {

/// "SIGTERM".
std::string name_of_stop(int signal) { return fmt::format("SIG{}", ::sigabbrev_np(signal)); }

constexpr std::chrono::milliseconds kPoll(20);
constexpr std::chrono::milliseconds kLastFlush(5000);  // for clients that read slowly
constexpr std::chrono::milliseconds kErrorFlush(300);  // mpirun may kill this rank in a second
/// For the pass loop to come back, and for handlers.
constexpr std::chrono::milliseconds kLeavePatience(2000);
constexpr int kFailed = 1;  // exit code

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

int Shutdown::end(int signal) {
  left_for_ = signal;
  passes_end_ = Clock::now();
  passes_ended_ = true;
  wait_until_clients_know();
  return signal != 0 ? signal : leave();
}

void Shutdown::fail(const ApiError& error) {
  error_ = error;
  failed_ = true;
  wait_until_clients_know();
}

void Shutdown::wait_until_clients_know() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return clients_know_; });
}

bool Shutdown::wait_until(Clock::time_point end) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, end, [this] { return finished_; });
}

bool Shutdown::wait_a_little() { return wait_until(Clock::now() + kPoll); }

/// Ranks may leave once there are no more passes.
int Shutdown::gone() const { return passes_ended_ ? -1 : watch_->gone(); }

bool Shutdown::over() const { return failed_ || left_for_ != 0 || gone() >= 0; }

void Shutdown::run() {
  if (!wait_for_signal()) return;
  const int code = drain() ? 0 : abandon();
  {
    const std::scoped_lock lock(mutex_);
    clients_know_ = true;
  }
  changed_.notify_all();
  if (!wait_until(Clock::now() + kLeavePatience)) end_job(code);
}

bool Shutdown::wait_for_signal() {
  while (signals_.count() == 0 && !over()) {
    if (wait_a_little()) return false;
  }
  return true;
}

bool Shutdown::drain() {
  server_->drain();
  if (over()) return false;
  const std::chrono::milliseconds time = signals_.drain(signals_.last());
  log_info(fmt::format("{}: no new requests; the {} that are open have {:.1f} s to end",
                       name_of_stop(signals_.last()), server_->open(),
                       std::chrono::duration<double>(time).count()));
  Clock::time_point latest = Clock::now() + time;
  while (signals_.count() < 2 && Clock::now() < latest && !over()) {
    if (passes_ended_) {  // what is still open needs none: a handler runs, or a client reads slowly
      latest = std::max(latest, passes_end_ + kLastFlush);
      if (server_->flush(kPoll)) return true;
    }
    if (wait_a_little()) break;
  }
  return false;
}

int Shutdown::abandon() {
  const int rank = gone();
  const std::size_t open = server_->open();
  ApiError error = failed_ ? *error_ : ApiError::stopped();
  if (rank >= 0) {
    log_error(fmt::format("rank {} is gone", rank));
    error = ApiError::failed(fmt::format("rank {} of the server is gone", rank));
  }
  if (open > 0) log_warning(fmt::format("{} open requests are ended with an error", open));
  const bool by_signal = rank < 0 && !failed_;
  if (by_signal) leave_ = left_for_ != 0 ? left_for_.load() : signals_.last();
  server_->abandon(error, kErrorFlush);
  return by_signal ? 128 + leave_ : kFailed;
}

void Shutdown::end_job(int code) {
  if (code != kFailed) {
    log_error(fmt::format("a {} takes too long to wait for its end; ending the job",
                          passes_ended_ ? "request" : "pass"));
  }
  if (world_->size() > 1) world_->abort(code);
  std::_Exit(code);
}

}  // namespace zi
