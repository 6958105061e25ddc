#include "serve/peer_watch.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace zi {
namespace {

/// FNV-1a: equal on all ranks, which std::hash need not be.
std::uint64_t hash_of(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return hash;
}

}  // namespace

PeerWatch::PeerWatch(World& world) {
  struct Process {
    std::uint64_t host;
    std::int64_t pid;
  };
  const Process mine{hash_of(world.host()), ::getpid()};
  const std::vector<Process> all = world.all_gather(mine);
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (static_cast<int>(r) == world.rank() || all[r].host != mine.host) continue;
    const long process = ::syscall(SYS_pidfd_open, static_cast<pid_t>(all[r].pid), 0);
    if (process < 0) continue;
    peers_.push_back({static_cast<int>(r), FileDescriptor(static_cast<int>(process))});
  }
}

int PeerWatch::gone() const {
  for (const Peer& peer : peers_) {
    pollfd ended{peer.process.get(), POLLIN, 0};  // readable once the process has ended
    if (::poll(&ended, 1, 0) > 0) return peer.rank;
  }
  return -1;
}

}  // namespace zi
