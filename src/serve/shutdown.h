#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
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
/// pass or waits for a rank that is gone. After the first signal no request is taken and those that
/// run go on; after the second, or when their time is over, they get an error, and all ranks leave.
/// So they do when another rank is gone; where a pass does not come back then, the job is ended.
class Shutdown {
 public:
  /// All that is given outlives it.
  Shutdown(World& world, Server& server, const HostWatch& watch, StopSignals signals);
  /// The pass loop has ended: nothing more is done.
  ~Shutdown();
  Shutdown(const Shutdown&) = delete;
  Shutdown& operator=(const Shutdown&) = delete;

  /// The signal that all ranks leave for; 0: they go on. For the pass loop.
  int leave() const { return leave_; }

 private:
  void run();
  /// Waits a little; whether the pass loop has ended.
  bool wait_a_little();
  bool wait_until(std::chrono::steady_clock::time_point end);
  void end_job(int code);

  World* world_;
  Server* server_;
  const HostWatch* watch_;
  StopSignals signals_;
  std::atomic<int> leave_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool finished_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace zi
