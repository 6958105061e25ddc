#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "serve/server.h"
#include "zero_infer/host_watch.h"
#include "zero_infer/world.h"

namespace zi {

/// What stops a server, as the program tells it; any thread asks.
struct StopSignals {
  std::function<int()> count;  // how many came
  std::function<int()> last;   // the last of them
  /// How long running requests may go on after that one.
  std::function<std::chrono::milliseconds(int signal)> drain;
};

/// Ends rank 0's server in order, on a thread of its own, also while the pass loop is in a long
/// pass, waits for a rank that is gone, or waits for handlers. After the first signal no request is
/// taken and those that run go on; after the second, or when their time is over, they get an error,
/// and all ranks leave. So they do when another rank is gone. Where the pass loop does not come
/// back then, or a handler does not, the job is ended.
class Shutdown {
 public:
  /// All that is given outlives it.
  Shutdown(World& world, Server& server, const HostWatch& watch, StopSignals signals);
  /// The server has been stopped: nothing more is done.
  ~Shutdown();
  Shutdown(const Shutdown&) = delete;
  Shutdown& operator=(const Shutdown&) = delete;

  /// The signal that all ranks leave for; 0: they go on. For the pass loop.
  int leave() const { return leave_; }

  /// The pass loop has ended, for that signal; 0: there is nothing more to do. Waits until clients
  /// have their answers or an error. Then the server is to be stopped, without delay: this watches.
  /// Returns the signal for which requests were left unanswered; 0: none were.
  int end(int signal);
  /// The pass loop has failed, or has not begun: the same, and clients get that error.
  void fail(const ApiError& error);

 private:
  using Clock = std::chrono::steady_clock;

  void run();
  /// Whether anything came that ends the server; false once it has been stopped.
  bool wait_for_signal();
  /// Whether all requests were answered in their time.
  bool drain();
  /// Ends the others with an error. Returns the exit code of a job that must be ended.
  int abandon();
  /// Nobody waits for requests any more.
  bool over() const;
  int gone() const;
  void wait_until_clients_know();
  /// Waits a little; whether the server has been stopped.
  bool wait_a_little();
  bool wait_until(Clock::time_point end);
  void end_job(int code);

  World* world_;
  Server* server_;
  const HostWatch* watch_;
  StopSignals signals_;
  std::atomic<int> leave_{0};
  std::atomic<int> left_for_{0};   // the signal that ended the pass loop
  std::optional<ApiError> error_;  // before failed_
  std::atomic<bool> failed_{false};
  std::atomic<bool> passes_ended_{false};
  Clock::time_point passes_end_{};  // before passes_ended_

  std::mutex mutex_;
  std::condition_variable changed_;
  bool clients_know_ = false;  // this thread does not use the server any more
  bool finished_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace zi
