#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "zero_infer/world.h"

namespace zi {

/// Notices when a rank no longer answers: its process has ended, has stopped, or its host or the
/// network to it is gone. No collective notices that; it waits for ever. Each rank has a TCP
/// connection to rank 0, over which both send a byte every now and then, from a thread that does
/// nothing else: a rank that is merely slow, in a pass of minutes or while it pins memory, goes on
/// sending. A rank that is silent for longer than the limit ends the job, with the host's name in
/// the message; so does one that has ended without a word, unless the launcher is faster. Rank 0
/// watches all others, and each of them watches rank 0: no rank of a host that is cut off waits for
/// ever either. What remains is MPI_Abort, and the end of an mpirun that waits for the daemon of a
/// host that does not answer.
///
/// Not noticed: what happens while no HostWatch lives (MPI_Init, the first collectives,
/// MPI_Finalize), and a path that is broken between two hosts which both still reach rank 0.
class HostWatch {
 public:
  struct Options {
    /// Of silence; 0: silence is not counted, but a process that has ended is noticed all the same.
    /// Rank 0's counts.
    std::chrono::seconds limit{0};
    /// Rank 0's, for the end of its message: `; finished sequences are kept`.
    std::string advice;
  };

  /// Collective, main thread; begins the watch. A rank that cannot reach rank 0 by TCP is not
  /// watched, which rank 0 says in a warning. Throws IoError (rank 0; PeerError elsewhere) where
  /// the system gives no socket.
  HostWatch(World& world, const Options& options);
  /// Waits, watching, until every rank is here: after that none watches. Where an exception ends
  /// this rank alone, it does not wait; `main` aborts the job then.
  ~HostWatch();
  HostWatch(const HostWatch&) = delete;
  HostWatch& operator=(const HostWatch&) = delete;

  /// A rank that has ended, or was silent for longer than the limit; -1: none was. A moment later
  /// the watch ends the job, also when the rank is heard of again. Ranks other than 0 know of rank
  /// 0 alone. Any thread, does not wait.
  int gone() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace zi
