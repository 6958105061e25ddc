#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "zero_infer/communicator.h"
#include "zero_infer/rank_hosts.h"

namespace zi {

/// Some or all of the job's ranks, numbered from 0, with collectives for small control messages
/// over MPI. Errors are CommError; strings are up to 2 GiB. All calls below except `abort` are for
/// the main thread, on host memory, and collective over the group where said. Waiting ranks sleep
/// instead of spinning on a core that a peer needs.
class RankGroup {
 public:
  virtual ~RankGroup();
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  int rank() const;
  int size() const;
  /// The name of this rank's host.
  const std::string& host() const;
  /// Which ranks of the group share a host.
  const RankHosts& hosts() const;

  /// Collective: every rank's value, by rank. For control: values are small (a block of weights
  /// goes through a Communicator), and an enumeration or an integer takes the place of a bool,
  /// because a list of bool has no memory to receive into.
  template <typename T>
  requires(std::is_trivially_copyable_v<T> && !std::is_same_v<T, bool> && !std::is_pointer_v<T> &&
           sizeof(T) <= 65536) std::vector<T> all_gather(const T& mine) {
    std::vector<T> all(static_cast<std::size_t>(size()));
    all_gather_bytes(&mine, all.data(), sizeof(T));
    return all;
  }
  /// Collective: every rank's list, one after the other; all are equally long.
  template <typename T>
  requires std::is_trivially_copyable_v<T> std::vector<T> all_gather(const std::vector<T>& mine) {
    std::vector<T> all(static_cast<std::size_t>(size()) * mine.size());
    all_gather_bytes(mine.data(), all.data(), mine.size() * sizeof(T));
    return all;
  }
  /// The next all_gather may wait for minutes, as for a request to a server: this rank sleeps
  /// longer meanwhile, and may notice some milliseconds late that the others are there.
  void expect_long_wait();
  /// Collective: the root's string on every rank.
  std::string broadcast(std::string bytes, int root);
  /// Collective: on the root every rank's string, elsewhere empty.
  std::vector<std::string> gather(std::string_view bytes, int root);
  /// Collective: item r of the root's list arrives at rank r (the list is ignored elsewhere).
  std::string scatter(const std::vector<std::string>& items, int root);
  void barrier();

  /// Collective: runs `step` on every rank and returns when all succeeded. Where ranks throw, the
  /// lowest of them throws its exception again (turned into a zi::Error if it is none) and all
  /// others throw PeerError: one line is printed and all leave together, without an abort. A rank
  /// that waits for seconds after it failed says so, in a warning. `step` itself must not be
  /// collective, apart from all_or_none inside it: a rank that fails before a collective call would
  /// leave the others in it.
  void all_or_none(const std::function<void()>& step);

  /// Whether the last thing that happened here is that all_or_none threw on every rank: all are on
  /// their way out, and none waits for another.
  bool leaving_together() const;

  /// Ends the whole job at once with this exit code; for failures in mid-pass. Any thread may call
  /// it, whatever the others are doing.
  [[noreturn]] void abort(int exit_code);

  /// Collectives between the ranks' devices for the CPU backend (device memory is host memory), on
  /// a communicator of its own. Collective. The group must outlive it.
  std::unique_ptr<Communicator> make_cpu_communicator();

  /// Collective: the group of all ranks that give the same number, in their order here. The World
  /// must outlive it. What fails in a part of the job alone is to end the job: the ranks outside of
  /// the part do not know of it.
  std::unique_ptr<RankGroup> split(int number);

 protected:
  struct State;
  RankGroup();
  explicit RankGroup(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;

 private:
  friend class MpiCommunicator;  // takes a communicator of its own

  /// recv (size, bytes).
  void all_gather_bytes(const void* send, void* recv, std::size_t bytes);
};

}  // namespace zi
