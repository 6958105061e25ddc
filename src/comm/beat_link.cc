#include "comm/beat_link.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <set>
#include <sstream>
#include <string_view>

#include "base/system_error.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSocketFlags = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
constexpr int kBacklog = 4096;                // the system takes less where it allows less
constexpr std::size_t kMostStrangers = 1024;  // connections that have not shown the token

std::string random_token() {
  std::string token(BeatInvitation::kTokenBytes, '\0');
  if (::getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) {
    throw IoError(fmt::format("no random bytes: {}", system_message(errno)));
  }
  return token;
}

/// A socket that listens at a free port of all addresses of this family; IPv6 takes IPv4 as well.
FileDescriptor listen_at_all(int family) {
  FileDescriptor socket(::socket(family, kSocketFlags, 0));
  if (!socket.is_open()) return socket;
  sockaddr_storage all{};
  all.ss_family = static_cast<sa_family_t>(family);  // the rest is zero: any address, any port
  const int off = 0;
  const bool listens =
      (family == AF_INET ||
       ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) == 0) &&
      ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&all),
             family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6)) == 0 &&
      ::listen(socket.get(), kBacklog) == 0;
  return listens ? std::move(socket) : FileDescriptor();
}

std::uint16_t port_of(const FileDescriptor& socket) {
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
    throw IoError(fmt::format("a socket has no name: {}", system_message(errno)));
  }
  // The port stands at the same place for both families.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&bound)->sin_port);
}

/// Addresses of this host at which others may reach it, and loopback for its own ranks. Link-local
/// ones mean nothing without the interface of the other host.
std::vector<std::string> own_addresses() {
  std::vector<std::string> found = {"127.0.0.1", "::1"};
  ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0) return found;
  for (const ifaddrs* i = first; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || (i->ifa_flags & IFF_UP) == 0) continue;
    if ((i->ifa_flags & IFF_LOOPBACK) != 0) continue;
    std::array<char, INET6_ADDRSTRLEN> text{};
    const void* address = nullptr;
    if (i->ifa_addr->sa_family == AF_INET) {
      address = &reinterpret_cast<const sockaddr_in*>(i->ifa_addr)->sin_addr;
    } else if (i->ifa_addr->sa_family == AF_INET6) {
      const in6_addr& six = reinterpret_cast<const sockaddr_in6*>(i->ifa_addr)->sin6_addr;
      if (!IN6_IS_ADDR_LINKLOCAL(&six)) address = &six;
    }
    if (address != nullptr &&
        ::inet_ntop(i->ifa_addr->sa_family, address, text.data(), text.size()) != nullptr) {
      found.emplace_back(text.data());
    }
  }
  ::freeifaddrs(first);
  return found;
}

/// The address with its port, and its size for connect(2); 0: the text is none.
std::pair<sockaddr_storage, socklen_t> parse_address(const std::string& text, std::uint16_t port) {
  sockaddr_storage out{};
  auto* four = reinterpret_cast<sockaddr_in*>(&out);
  auto* six = reinterpret_cast<sockaddr_in6*>(&out);
  if (::inet_pton(AF_INET, text.c_str(), &four->sin_addr) == 1) {
    four->sin_family = AF_INET;
    four->sin_port = htons(port);
    return {out, sizeof(sockaddr_in)};
  }
  if (::inet_pton(AF_INET6, text.c_str(), &six->sin6_addr) == 1) {
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(port);
    return {out, sizeof(sockaddr_in6)};
  }
  return {out, 0};
}

/// Whether all of it went: a new connection has room for the few bytes that are said first.
bool say(int socket, std::string_view bytes) {
  return ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
         static_cast<ssize_t>(bytes.size());
}

/// A connection that has to say something before it counts.
struct Stranger {
  FileDescriptor socket;
  std::string said;
  bool lost = false;

  /// Reads what is there; whether `wanted` bytes have come.
  bool listen(std::size_t wanted) {
    std::array<char, 64> bytes{};
    const ssize_t count = ::recv(socket.get(), bytes.data(), wanted - said.size(), 0);
    if (count > 0) said.append(bytes.data(), static_cast<std::size_t>(count));
    if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) lost = true;
    return said.size() == wanted;
  }
};

int milliseconds_until(Clock::time_point end) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
  return static_cast<int>(std::max<std::int64_t>(left.count(), 0));
}

/// The rank that a stranger has shown to be; -1: not one of this job's.
int rank_of(const std::string& said, const std::string& token, int ranks) {
  std::int32_t rank = -1;
  if (std::string_view(said).substr(0, token.size()) != token) return -1;
  std::memcpy(&rank, said.data() + token.size(), sizeof(rank));
  return rank > 0 && rank < ranks ? rank : -1;
}

/// Starts a connection to each address that takes one.
std::vector<Stranger> start_connections(const BeatInvitation& invitation) {
  std::vector<Stranger> out;
  const std::set<std::string> addresses(invitation.addresses.begin(), invitation.addresses.end());
  for (const std::string& text : addresses) {
    const auto [address, size] = parse_address(text, invitation.port);
    if (size == 0) continue;
    FileDescriptor socket(::socket(address.ss_family, kSocketFlags, 0));
    if (!socket.is_open()) continue;  // a host without this family
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0 ||
        errno == EINPROGRESS) {
      out.push_back({.socket = std::move(socket), .said = {}});
    }
  }
  return out;
}

}  // namespace

std::string BeatInvitation::to_bytes() const {
  std::string bytes = server_token + rank_token + std::to_string(port);
  for (const std::string& address : addresses) bytes += " " + address;
  return bytes;
}

BeatInvitation BeatInvitation::from_bytes(const std::string& bytes) {
  BeatInvitation out;
  if (bytes.size() > 2 * kTokenBytes) {
    out.server_token = bytes.substr(0, kTokenBytes);
    out.rank_token = bytes.substr(kTokenBytes, kTokenBytes);
    std::istringstream rest(bytes.substr(2 * kTokenBytes));
    rest >> out.port;
    for (std::string address; rest >> address;) out.addresses.push_back(address);
  }
  if (out.port == 0) throw CommError("rank 0 has not said where it listens");
  return out;
}

BeatListener::BeatListener() {
  socket_ = listen_at_all(AF_INET6);
  if (!socket_.is_open()) socket_ = listen_at_all(AF_INET);
  if (!socket_.is_open()) {
    throw IoError(fmt::format("cannot listen for the other ranks: {}", system_message(errno)));
  }
  invitation_ = {.server_token = random_token(),
                 .rank_token = random_token(),
                 .port = port_of(socket_),
                 .addresses = own_addresses()};
}

std::vector<FileDescriptor> BeatListener::accept(int ranks, Clock::time_point end) {
  std::vector<FileDescriptor> by_rank(static_cast<std::size_t>(ranks));
  std::vector<Stranger> strangers;
  std::vector<pollfd> polled;
  for (int missing = ranks - 1; missing > 0;) {
    polled.assign(1, {socket_.get(), POLLIN, 0});
    for (const Stranger& s : strangers) polled.push_back({s.socket.get(), POLLIN, 0});
    const int left = milliseconds_until(end);
    if (::poll(polled.data(), polled.size(), left) <= 0 && left == 0) break;
    for (std::size_t i = 0; i < strangers.size(); ++i) {
      Stranger& s = strangers[i];
      if (polled[i + 1].revents == 0) continue;
      if (!s.listen(BeatInvitation::kTokenBytes + sizeof(std::int32_t))) continue;
      const int rank = rank_of(s.said, invitation_.rank_token, ranks);
      s.lost = true;
      if (rank < 0 || by_rank[static_cast<std::size_t>(rank)].is_open()) continue;
      by_rank[static_cast<std::size_t>(rank)] = std::move(s.socket);
      --missing;
    }
    std::erase_if(strangers, [](const Stranger& s) { return s.lost; });
    if (polled.front().revents == 0) continue;
    FileDescriptor socket(::accept4(socket_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket.is_open() || strangers.size() >= kMostStrangers) continue;
    if (say(socket.get(), invitation_.server_token)) {
      strangers.push_back({.socket = std::move(socket), .said = {}});
    }
  }
  return by_rank;
}

FileDescriptor connect_beats(const BeatInvitation& invitation, int rank, Clock::time_point end) {
  std::vector<Stranger> strangers = start_connections(invitation);
  std::vector<pollfd> polled;
  while (!strangers.empty()) {
    polled.clear();
    // Readable once it is connected and rank 0 has said its token; an error counts as readable.
    for (const Stranger& s : strangers) polled.push_back({s.socket.get(), POLLIN, 0});
    const int left = milliseconds_until(end);
    if (::poll(polled.data(), polled.size(), left) <= 0 && left == 0) break;
    for (std::size_t i = 0; i < strangers.size(); ++i) {
      Stranger& s = strangers[i];
      if (polled[i].revents == 0 || !s.listen(BeatInvitation::kTokenBytes)) continue;
      s.lost = true;
      if (s.said != invitation.server_token) continue;
      const auto number = static_cast<std::int32_t>(rank);
      std::string answer = invitation.rank_token;
      answer.append(reinterpret_cast<const char*>(&number), sizeof(number));
      if (say(s.socket.get(), answer)) return std::move(s.socket);
    }
    std::erase_if(strangers, [](const Stranger& s) { return s.lost; });
  }
  return {};
}

}  // namespace zi
