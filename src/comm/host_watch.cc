#include "zero_infer/host_watch.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/blocked_signals.h"
#include "base/file_descriptor.h"
#include "base/system_error.h"
#include "comm/beat_link.h"
#include "comm/launcher_end.h"
#include "comm/loss_text.h"
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
constexpr char kEnd = 'e';       // rank 0 ends the job; another: it leaves, it has lost rank 0

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
/// Before the others are told, for the reason to be written: they end the job as well, and what is
/// not written by then is lost. On a busy machine a line can take a second.
constexpr milliseconds kExplainTime(2000);
constexpr milliseconds kExplainPoll(5);
constexpr seconds kLauncherTime(5);

constexpr int kFailed = 1;  // exit code

struct Peer {
  int rank = 0;
  FileDescriptor socket;
  Silence silence;
  bool farewell = false;
  bool left = false;    // said kEnd
  bool ended = false;   // its process has closed the connection
  bool broken = false;  // the network has: no more comes, which is silence

  bool hears() const { return !ended && !broken; }
};

enum class Loss { kNone, kSilent, kEnded, kLeft };

/// What the thread is to do that ends the job: kEndJob, to write the reason, which it answers with
/// kExplained; and when the other ranks know, kTold, to end the job. Where it is late, it finds
/// kTold at once, and does both.
enum class Order { kWait, kEndJob, kExplained, kTold, kNothing };

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
/// have. `hosts`: of each rank.
std::vector<std::pair<int, FileDescriptor>> connect_ranks(World& world,
                                                          const std::vector<std::string>& hosts) {
  std::optional<BeatListener> listener;
  world.all_or_none([&] {
    if (world.rank() == 0) listener.emplace();
  });
  const std::string bytes =
      world.broadcast(listener ? listener->invitation().to_bytes() : std::string(), 0);
  const Clock::time_point end = Clock::now() + kConnectTime;
  std::vector<std::pair<int, FileDescriptor>> links;
  const auto rank = static_cast<std::size_t>(world.rank());
  std::string connected(hosts.size(), '\0');
  if (listener) {
    std::vector<FileDescriptor> by_rank = listener->accept(world.size(), end);
    for (std::size_t r = 1; r < by_rank.size(); ++r) {
      if (!by_rank[r].is_open()) continue;
      connected[r] = 1;
      links.emplace_back(static_cast<int>(r), std::move(by_rank[r]));
    }
  } else {
    BeatInvitation invitation = BeatInvitation::from_bytes(bytes);
    if (hosts[rank] == hosts.front()) invitation = invitation.with_loopback();
    links.emplace_back(0, connect_beats(invitation, world.rank(), end));
    connected[rank] = links.front().second.is_open() ? 1 : 0;
  }
  // One end may have given up when the other had just done its part.
  const std::string at_first = world.broadcast(connected, 0);
  const std::vector<char> at_rank = world.all_gather(connected[rank]);
  std::erase_if(links, [&](const auto& link) {
    const auto r = listener ? static_cast<std::size_t>(link.first) : rank;
    return at_first[r] == 0 || at_rank[r] == 0;
  });
  return links;
}

/// Rank 0: the warning that names ranks which cannot be watched, and from where the others are.
void say_who_is_watched(const World& world, const std::vector<Peer>& peers,
                        const std::vector<std::string>& hosts) {
  std::vector<std::string> unwatched, watched;
  for (int r = 1; r < world.size(); ++r) {
    std::string name = fmt::format("rank {} on {}", r, hosts[static_cast<std::size_t>(r)]);
    const auto peer = std::ranges::find(peers, r, &Peer::rank);
    if (peer == peers.end()) {
      unwatched.push_back(std::move(name));
    } else {
      watched.push_back(fmt::format("{} at {}", name, address_of_peer(peer->socket)));
    }
  }
  if (!watched.empty()) log_verbose(fmt::format("watched by TCP: {}", fmt::join(watched, ", ")));
  if (unwatched.empty()) return;
  log_warning(fmt::format(
      "{} ha{} not connected to rank 0 on {} by TCP within {} s, so that a host that vanishes is "
      "not noticed; open its ports to the other hosts",
      fmt::join(unwatched, ", "), unwatched.size() == 1 ? "s" : "ve", world.host(),
      kConnectTime.count()));
}

}  // namespace

struct HostWatch::State {
  explicit State(World& w) : world(&w) {}
  ~State() {
    order = Order::kNothing;
    order.notify_one();
    if (ender.joinable()) ender.join();
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void run();
  /// Reads what a peer has said.
  void listen(Peer& peer);
  void say(char what);
  Loss loss_of(const Peer& peer) const;
  /// Notes the first peer that is lost. That stands, also when it is heard of again: a server has
  /// told its clients.
  void look_for_loss();
  std::string what_is_lost() const;
  /// Whether all that was to be watched is over.
  bool over();
  [[noreturn]] void end_job();
  [[noreturn]] void leave();
  /// The other thread: does what may block, or take memory, while the first one counts the time.
  void wait_and_end();

  World* world;
  std::string advice;
  milliseconds limit{0};
  milliseconds beat{0};
  std::vector<std::string> hosts;  // of each rank
  std::vector<Peer> peers;         // on rank 0 all others, elsewhere rank 0
  FileDescriptor wake;
  int exceptions_at_start = std::uncaught_exceptions();

  // of the thread that watches; from kEndJob on of the other one
  Clock::time_point lost_since;
  Clock::duration lost_silence{0};
  Loss loss = Loss::kNone;
  bool said_farewell = false;

  std::atomic<int> gone{-1};
  std::atomic<bool> farewell{false};  // wanted
  std::atomic<bool> stop{false};      // at once
  std::atomic<Order> order{Order::kWait};
  std::thread ender;
  std::thread thread;
};

HostWatch::HostWatch(World& world, const Options& options)
    : state_(std::make_unique<State>(world)) {
  if (world.size() == 1) return;
  State& s = *state_;
  s.advice = options.advice;
  s.limit = seconds(world.all_gather(std::int64_t{options.limit.count()}).front());
  s.beat = s.limit.count() == 0 ? kLongestBeat : std::min(kLongestBeat, s.limit / 4);
  s.hosts = all_hosts(world);
  for (auto& [rank, socket] : connect_ranks(world, s.hosts)) {
    s.peers.push_back({.rank = rank, .socket = std::move(socket), .silence = Silence(2 * s.beat)});
  }
  if (world.rank() == 0) say_who_is_watched(world, s.peers, s.hosts);
  world.all_or_none([&] {
    s.wake = FileDescriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!s.wake.is_open()) {
      throw IoError(fmt::format("no eventfd: {}", system_message(errno)));
    }
  });
  const BlockedSignals blocked;
  s.ender = std::thread([&s] { s.wait_and_end(); });
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

/// Takes no memory, no lock, and touches no page that was not there before: a process that pins
/// hundreds of gigabytes may keep every other page fault waiting for minutes.
void HostWatch::State::run() {
  std::vector<pollfd> polled;
  polled.reserve(peers.size() + 1);
  Clock::time_point last_look = Clock::now();
  Clock::time_point last_beat = last_look - beat;
  while (!stop) {
    polled.assign(1, {wake.get(), POLLIN, 0});
    for (const Peer& p : peers) {
      polled.push_back({p.hears() ? p.socket.get() : -1, POLLIN, 0});
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
    if (loss != Loss::kNone &&
        now - lost_since > (loss == Loss::kEnded ? kEndedGrace : kSilentGrace)) {
      end_job();
    }
  }
}

void HostWatch::State::listen(Peer& peer) {
  std::array<char, 256> bytes;
  const ssize_t count = ::recv(peer.socket.get(), bytes.data(), bytes.size(), 0);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count <= 0) {
    // The system of a process that has ended says so. What else ends a connection is said by this
    // one, or by the network: the process may be there, and the limit says how long that may last.
    (count == 0 || errno == ECONNRESET ? peer.ended : peer.broken) = true;
    return;
  }
  peer.silence.heard();
  const std::string_view said(bytes.data(), static_cast<std::size_t>(count));
  if (said.find(kFarewell) != said.npos) peer.farewell = true;
  if (said.find(kEnd) == said.npos) return;
  if (world->rank() != 0) leave();
  peer.left = true;
}

void HostWatch::State::say(char what) {
  // Where the buffer is full the peer reads nothing, and so it says nothing either.
  for (const Peer& p : peers) {
    if (p.hears()) ::send(p.socket.get(), &what, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
}

bool HostWatch::State::over() {
  if (!farewell) return false;
  // Where silence is not counted, the end of a broken connection is never heard.
  const bool all_there = std::ranges::all_of(
      peers, [this](const Peer& p) { return p.farewell || (p.broken && limit.count() == 0); });
  if (world->rank() == 0) {
    if (all_there) say(kFarewell);
    return all_there;
  }
  if (!std::exchange(said_farewell, true)) say(kFarewell);
  return all_there;
}

Loss HostWatch::State::loss_of(const Peer& peer) const {
  if (peer.left) return Loss::kLeft;
  if (peer.ended) return Loss::kEnded;
  return limit.count() > 0 && peer.silence.so_far() > limit ? Loss::kSilent : Loss::kNone;
}

void HostWatch::State::look_for_loss() {
  if (loss != Loss::kNone) return;
  for (const Peer& p : peers) {
    loss = loss_of(p);
    if (loss == Loss::kNone) continue;
    lost_since = Clock::now();
    lost_silence = p.silence.so_far();
    gone = p.rank;
    return;
  }
}

std::string HostWatch::State::what_is_lost() const {
  const int lost = gone;
  const std::string& host = hosts[static_cast<std::size_t>(lost)];
  if (loss == Loss::kEnded) {
    return fmt::format("rank {} on {} has ended without a word", lost, host);
  }
  if (loss == Loss::kLeft) {
    return fmt::format("rank {} on {} no longer hears rank 0 on {}, and has left", lost, host,
                       world->host());
  }
  const auto in_milliseconds = [&](const Peer& p) {
    const Clock::duration silent =
        p.rank == lost ? std::max(lost_silence, p.silence.so_far()) : p.silence.so_far();
    return std::chrono::duration_cast<milliseconds>(silent);
  };
  if (world->rank() != 0) {
    return fmt::format("rank 0 on {} has been silent for {:.0f} s", host,
                       std::chrono::duration<double>(in_milliseconds(peers.front())).count());
  }
  std::vector<RankSilence> ranks;
  for (int r = 0; r < world->size(); ++r) {
    ranks.push_back({.rank = r,
                     .host = world->hosts().host_of(r),
                     .host_name = hosts[static_cast<std::size_t>(r)],
                     .silent = milliseconds(0)});
  }
  for (const Peer& p : peers) ranks[static_cast<std::size_t>(p.rank)].silent = in_milliseconds(p);
  // Who has vanished at the same time may have spoken a beat later.
  return silence_text(ranks, lost, limit - beat, beat);
}

void HostWatch::State::end_job() {
  // A log that nobody reads, an MPI_Abort that waits for a host which does not answer, memory that
  // does not come: none of them is waited for beyond a time.
  order = Order::kEndJob;
  order.notify_one();
  const Clock::time_point asked = Clock::now();
  while (order == Order::kEndJob && Clock::now() - asked < kExplainTime) {
    std::this_thread::sleep_for(kExplainPoll);
  }
  say(kEnd);
  order = Order::kTold;
  order.notify_one();
  std::this_thread::sleep_for(kAbortTime);
  std::_Exit(kFailed);
}

void HostWatch::State::wait_and_end() {
  order.wait(Order::kWait);
  if (order == Order::kNothing) return;
  if (loss != Loss::kEnded) end_launcher_after(kLauncherTime);
  log_error(fmt::format("{}; {}{}{}", what_is_lost(),
                        world->rank() == 0 ? "ending the job" : "leaving the job",
                        loss == Loss::kSilent ? " (--host-timeout sets the limit)" : "", advice));
  Order asked = Order::kEndJob;
  if (order.compare_exchange_strong(asked, Order::kExplained)) order.wait(Order::kExplained);
  world->abort(kFailed);
}

void HostWatch::State::leave() {
  // Rank 0 has said why, and its MPI_Abort ends this rank, where that comes through.
  std::this_thread::sleep_for(kAbortTime);
  std::_Exit(kFailed);
}

}  // namespace zi
