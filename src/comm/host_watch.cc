#include "zero_infer/host_watch.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <map>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/file_descriptor.h"
#include "base/system_error.h"
#include "comm/beat_link.h"
#include "comm/launcher_end.h"
#include "comm/silence.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

// What is said, a byte each.
constexpr char kBeat = 'b';
constexpr char kFarewell = 'f';  // this rank has come to the end; rank 0: all have
constexpr char kEnd = 'e';       // rank 0 ends the job

constexpr seconds kConnectTime(5);
constexpr milliseconds kLongestBeat(1000);
/// Before a silent rank ends the job: others of its host are silent by then, and a server has told
/// its clients.
constexpr milliseconds kSilentGrace(1000);
/// Before one that has ended does: where a rank fails, the launcher ends all of them, and the one
/// that failed has said why.
constexpr milliseconds kEndedGrace(3000);
/// Ranks that MPI_Abort does not end leave by themselves.
constexpr seconds kAbortTime(2);
constexpr seconds kLauncherTime(4);

constexpr int kFailed = 1;  // exit code

struct Peer {
  int rank = 0;
  std::string host;
  FileDescriptor socket;
  Silence silence;
  bool farewell = false;
  bool ended = false;
};

/// Blocks all signals in this thread while it lives: a thread that starts now inherits that.
class WithoutSignals {
 public:
  WithoutSignals() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~WithoutSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  WithoutSignals(const WithoutSignals&) = delete;
  WithoutSignals& operator=(const WithoutSignals&) = delete;

 private:
  sigset_t before_;
};

std::string ranks_text(const std::vector<int>& ranks) {
  if (ranks.size() == 1) return fmt::format("rank {}", ranks.front());
  return fmt::format("ranks {} and {}", fmt::join(ranks.begin(), ranks.end() - 1, ", "),
                     ranks.back());
}

/// Of each rank, known on all.
std::vector<std::string> all_hosts(World& world) {
  std::string lines;
  for (const std::string& host : world.gather(world.host(), 0)) lines += host + '\n';
  lines = world.broadcast(std::move(lines), 0);
  std::vector<std::string> hosts;
  for (std::size_t at = 0; at < lines.size();) {
    const std::size_t end = lines.find('\n', at);
    hosts.push_back(lines.substr(at, end - at));
    at = end + 1;
  }
  return hosts;
}

/// Collective: this rank's connections, by the rank at the other end. Only those that both ends
/// have.
std::vector<std::pair<int, FileDescriptor>> connect_ranks(World& world) {
  std::optional<BeatListener> listener;
  world.all_or_none([&] {
    if (world.rank() == 0) listener.emplace();
  });
  const std::string bytes =
      world.broadcast(listener ? listener->invitation().to_bytes() : std::string(), 0);
  const Clock::time_point end = Clock::now() + kConnectTime;
  std::vector<std::pair<int, FileDescriptor>> links;
  std::string connected(static_cast<std::size_t>(world.size()), '\0');
  if (listener) {
    std::vector<FileDescriptor> by_rank = listener->accept(world.size(), end);
    for (std::size_t r = 1; r < by_rank.size(); ++r) {
      if (!by_rank[r].is_open()) continue;
      connected[r] = 1;
      links.emplace_back(static_cast<int>(r), std::move(by_rank[r]));
    }
  } else {
    links.emplace_back(0, connect_beats(BeatInvitation::from_bytes(bytes), world.rank(), end));
  }
  connected = world.broadcast(std::move(connected), 0);
  if (!listener && connected[static_cast<std::size_t>(world.rank())] == 0) links.clear();
  return links;
}

/// Collective: the warning that names ranks which cannot be watched.
void warn_of_unwatched(const World& world, const std::vector<Peer>& peers,
                       const std::vector<std::string>& hosts) {
  std::vector<std::string> names;
  for (int r = 1; r < world.size(); ++r) {
    if (std::ranges::find(peers, r, &Peer::rank) != peers.end()) continue;
    names.push_back(fmt::format("rank {} on {}", r, hosts[static_cast<std::size_t>(r)]));
  }
  if (names.empty()) return;
  log_warning(fmt::format(
      "{} cannot reach rank 0 on {} by TCP, so that a host that vanishes is not noticed; open its "
      "ports to the other hosts",
      fmt::join(names, ", "), world.host()));
}

}  // namespace

struct HostWatch::State {
  explicit State(World& w) : world(&w) {}

  void run();
  /// Reads what a peer has said.
  void listen(Peer& peer);
  void say(char what);
  /// Notes the first peer that is lost.
  void look_for_loss();
  std::string what_is_lost() const;
  /// Whether all that was to be watched is over.
  bool over();
  [[noreturn]] void end_job();
  [[noreturn]] void leave();

  World* world;
  std::string advice;
  milliseconds limit{0};
  milliseconds beat{0};
  std::vector<Peer> peers;  // on rank 0 all others, elsewhere rank 0
  FileDescriptor wake;
  int exceptions_at_start = std::uncaught_exceptions();

  // of the thread
  std::optional<Clock::time_point> lost_since;
  bool ended = false;  // the lost peer's connection is closed; else it is silent
  bool said_farewell = false;

  std::atomic<int> gone{-1};
  std::atomic<bool> farewell{false};  // wanted
  std::atomic<bool> stop{false};      // at once
  std::thread thread;
};

HostWatch::HostWatch(World& world, const Options& options)
    : state_(std::make_unique<State>(world)) {
  if (world.size() == 1) return;
  State& s = *state_;
  s.advice = options.advice;
  s.limit = seconds(world.all_gather(std::int64_t{options.limit.count()}).front());
  s.beat = s.limit.count() == 0 ? kLongestBeat : std::min(kLongestBeat, s.limit / 4);
  const std::vector<std::string> hosts = all_hosts(world);
  for (auto& [rank, socket] : connect_ranks(world)) {
    s.peers.push_back({.rank = rank,
                       .host = hosts[static_cast<std::size_t>(rank)],
                       .socket = std::move(socket),
                       .silence = Silence(2 * s.beat)});
  }
  if (world.rank() == 0) warn_of_unwatched(world, s.peers, hosts);
  world.all_or_none([&] {
    s.wake = FileDescriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!s.wake.is_open()) {
      throw IoError(fmt::format("no eventfd: {}", system_message(errno)));
    }
  });
  const WithoutSignals blocked;
  s.thread = std::thread([&s] { s.run(); });
}

HostWatch::~HostWatch() {
  State& s = *state_;
  if (!s.thread.joinable()) return;
  const bool alone =
      std::uncaught_exceptions() > s.exceptions_at_start && !s.world->leaving_together();
  (alone ? s.stop : s.farewell) = true;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(s.wake.get(), &one, sizeof(one));
  s.thread.join();
}

int HostWatch::gone() const { return state_->gone; }

/// Takes no memory and touches no page that was not there before: a process that pins hundreds of
/// gigabytes may keep every other page fault waiting for minutes.
void HostWatch::State::run() {
  std::vector<pollfd> polled;
  polled.reserve(peers.size() + 1);
  Clock::time_point last_look = Clock::now();
  Clock::time_point last_beat = last_look - beat;
  while (!stop) {
    polled.assign(1, {wake.get(), POLLIN, 0});
    for (const Peer& p : peers) {
      polled.push_back({p.ended ? -1 : p.socket.get(), POLLIN, 0});
    }
    ::poll(polled.data(), polled.size(), static_cast<int>(beat.count() / 2));
    const Clock::time_point now = Clock::now();
    const Clock::duration pause = now - std::exchange(last_look, now);
    std::uint64_t wakes = 0;
    [[maybe_unused]] const ssize_t count = ::read(wake.get(), &wakes, sizeof(wakes));
    for (std::size_t i = 0; i < peers.size(); ++i) {
      peers[i].silence.passed(pause);
      if (polled[i + 1].revents != 0) listen(peers[i]);
    }
    if (over()) return;
    if (now - last_beat >= beat) {
      last_beat = now;
      say(kBeat);
    }
    look_for_loss();
    if (lost_since && now - *lost_since > (ended ? kEndedGrace : kSilentGrace)) end_job();
  }
}

void HostWatch::State::listen(Peer& peer) {
  std::array<char, 256> bytes;
  const ssize_t count = ::recv(peer.socket.get(), bytes.data(), bytes.size(), 0);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count <= 0) {
    peer.ended = true;
    return;
  }
  peer.silence.heard();
  const std::string_view said(bytes.data(), static_cast<std::size_t>(count));
  if (said.find(kEnd) != said.npos) leave();
  if (said.find(kFarewell) != said.npos) peer.farewell = true;
}

void HostWatch::State::say(char what) {
  // Where the buffer is full the peer reads nothing, and so it says nothing either.
  for (const Peer& p : peers) {
    if (!p.ended) ::send(p.socket.get(), &what, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
}

bool HostWatch::State::over() {
  if (!farewell) return false;
  const bool all_there = std::ranges::all_of(peers, [](const Peer& p) { return p.farewell; });
  if (world->rank() == 0) {
    if (all_there) say(kFarewell);
    return all_there;
  }
  if (!std::exchange(said_farewell, true)) say(kFarewell);
  return all_there;
}

void HostWatch::State::look_for_loss() {
  if (lost_since) return;
  for (const Peer& p : peers) {
    const bool silent = limit.count() > 0 && p.silence.so_far() > limit;
    if (!p.ended && !silent) continue;
    ended = p.ended;
    lost_since = Clock::now();
    gone = p.rank;
    return;
  }
}

std::string HostWatch::State::what_is_lost() const {
  const Peer& first = *std::ranges::find(peers, gone.load(), &Peer::rank);
  if (ended) return fmt::format("rank {} on {} has ended without a word", first.rank, first.host);
  const auto silent_for = std::chrono::duration<double>(limit).count();
  if (world->rank() != 0) {
    return fmt::format("rank 0 on {} has been silent for {:.0f} s", first.host, silent_for);
  }
  std::map<std::string, std::vector<int>> silent, others;  // ranks by host
  others[world->host()].push_back(0);
  for (const Peer& p : peers) {
    (p.silence.so_far() > limit / 2 ? silent : others)[p.host].push_back(p.rank);
  }
  std::vector<std::string> names;
  bool whole = true;  // hosts, and not some of their ranks
  for (const auto& [host, ranks] : silent) {
    const bool part = others.contains(host);
    names.push_back(part ? fmt::format("{} on {}", ranks_text(ranks), host)
                         : fmt::format("host {} ({})", host, ranks_text(ranks)));
    whole = whole && !part;
  }
  const bool alone = whole && silent.size() > 1 && others.size() == 1;
  return fmt::format(
      "{} ha{} been silent for {:.0f} s{}", fmt::join(names, " and "),
      names.size() == 1 && (whole || silent.begin()->second.size() == 1) ? "s" : "ve", silent_for,
      alone   ? fmt::format(": the network of {} may be down", world->host())
      : whole ? ": the host, its network or its processes have stopped"
              : ", and other ranks there have not");
}

void HostWatch::State::end_job() {
  const bool first = world->rank() == 0;
  log_error(fmt::format("{}; {}{}{}", what_is_lost(), first ? "ending the job" : "leaving the job",
                        ended ? "" : " (--host-timeout sets the limit)", advice));
  say(kEnd);
  if (!ended) end_launcher_after(kLauncherTime);
  // MPI_Abort may wait for a host that does not answer.
  std::thread([] {
    std::this_thread::sleep_for(kAbortTime);
    std::_Exit(kFailed);
  }).detach();
  world->abort(kFailed);
}

void HostWatch::State::leave() {
  // Rank 0 has said why, and its MPI_Abort ends this rank, where that comes through.
  std::this_thread::sleep_for(kAbortTime);
  std::_Exit(kFailed);
}

}  // namespace zi
