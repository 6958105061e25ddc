#include "comm/beat_link.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <set>
#include <sstream>
#include <string_view>
#include <thread>
#include <utility>

#include "base/system_error.h"
#include "comm/beat_proof.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSocketFlags = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
constexpr int kBacklog = 4096;              // the system takes less where it allows less
constexpr std::size_t kMostStrangers = 64;  // far below the usual limit of open files
/// That a stranger has to prove who it is when others wait.
constexpr std::chrono::milliseconds kStrangerTime(200);
/// Between two looks for a free descriptor, where there is none.
constexpr std::chrono::milliseconds kDescriptorPause(10);

// What is said, in this order: rank 0's random bytes; the rank, its own random bytes and its proof;
// rank 0's proof.
constexpr std::size_t kNonceBytes = 16;
constexpr std::size_t kRankBytes = sizeof(std::int32_t);
constexpr std::size_t kAnswerBytes = kRankBytes + kNonceBytes + kProofBytes;

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

/// An address as text; an IPv4 one that an IPv6 socket shows, as IPv4. Empty: of another family.
std::string address_text(const sockaddr* address) {
  const void* bytes = nullptr;
  int family = address->sa_family;
  if (family == AF_INET) {
    bytes = &reinterpret_cast<const sockaddr_in*>(address)->sin_addr;
  } else if (family == AF_INET6) {
    const in6_addr& six = reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
    bytes = &six;
    if (IN6_IS_ADDR_V4MAPPED(&six)) {
      bytes = six.s6_addr + 12;
      family = AF_INET;
    }
  }
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (bytes == nullptr || ::inet_ntop(family, bytes, text.data(), text.size()) == nullptr)
    return {};
  return text.data();
}

/// Addresses of this host at which others may reach it. Link-local ones mean nothing without the
/// interface of the other host.
std::vector<std::string> own_addresses() {
  std::vector<std::string> found;
  ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0) return found;
  for (const ifaddrs* i = first; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || (i->ifa_flags & IFF_UP) == 0) continue;
    if ((i->ifa_flags & IFF_LOOPBACK) != 0) continue;
    if (i->ifa_addr->sa_family == AF_INET6 &&
        IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(i->ifa_addr)->sin6_addr)) {
      continue;
    }
    const std::string text = address_text(i->ifa_addr);
    if (!text.empty()) found.push_back(text);
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
  Clock::time_point since = Clock::now();
  std::string asked;  // what it has to prove itself with
  std::string said;
  bool lost = false;

  /// Reads what is there; whether `wanted` bytes have come.
  bool listen(std::size_t wanted) {
    std::array<char, 128> bytes{};
    static_assert(bytes.size() >= kAnswerBytes);
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

std::string rank_proof(const std::string& secret, std::string_view asked, std::string_view rank,
                       std::string_view nonce) {
  return proof(secret, fmt::format("a rank{}{}{}", asked, rank, nonce));
}

/// Another text than that of a rank, so that none can be sent back to its maker.
std::string first_proof(const std::string& secret, std::string_view asked, std::string_view rank,
                        std::string_view nonce) {
  return proof(secret, fmt::format("rank 0{}{}{}", asked, rank, nonce));
}

/// What a rank answers to rank 0's random bytes.
std::string answer_of(const std::string& secret, std::string_view asked, int rank,
                      std::string_view nonce) {
  const auto number = static_cast<std::int32_t>(rank);
  const std::string bytes(reinterpret_cast<const char*>(&number), sizeof(number));
  return fmt::format("{}{}{}", bytes, nonce, rank_proof(secret, asked, bytes, nonce));
}

/// The rank that a stranger has shown to be; -1: not one of this job's.
int rank_of(const Stranger& stranger, const std::string& secret, int ranks) {
  const std::string_view said = stranger.said;
  const std::string_view bytes = said.substr(0, kRankBytes);
  const std::string_view nonce = said.substr(kRankBytes, kNonceBytes);
  if (!same_proof(said.substr(kRankBytes + kNonceBytes),
                  rank_proof(secret, stranger.asked, bytes, nonce))) {
    return -1;
  }
  std::int32_t rank = -1;
  std::memcpy(&rank, bytes.data(), sizeof(rank));
  return rank > 0 && rank < ranks ? rank : -1;
}

/// Takes in who waits at `socket`, and asks it; `strangers` are those who were asked before, the
/// oldest first.
void take_in(const FileDescriptor& socket, std::vector<Stranger>& strangers) {
  FileDescriptor taken(::accept4(socket.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!taken.is_open()) {
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
    // No descriptor, or no memory: who waits goes on waiting, and the socket stays readable.
    if (!strangers.empty()) strangers.erase(strangers.begin());
    std::this_thread::sleep_for(kDescriptorPause);
    return;
  }
  if (strangers.size() >= kMostStrangers) strangers.erase(strangers.begin());
  std::string asked = random_bytes(kNonceBytes);
  if (!say(taken.get(), asked)) return;
  strangers.push_back({.socket = std::move(taken), .asked = std::move(asked), .said = {}});
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
      out.push_back({.socket = std::move(socket), .asked = random_bytes(kNonceBytes), .said = {}});
    }
  }
  return out;
}

}  // namespace

std::string BeatInvitation::to_bytes() const {
  std::string bytes = secret + std::to_string(port);
  for (const std::string& address : addresses) bytes += " " + address;
  return bytes;
}

BeatInvitation BeatInvitation::from_bytes(const std::string& bytes) {
  BeatInvitation out;
  if (bytes.size() > kSecretBytes) {
    out.secret = bytes.substr(0, kSecretBytes);
    std::istringstream rest(bytes.substr(kSecretBytes));
    rest >> out.port;
    for (std::string address; rest >> address;) out.addresses.push_back(address);
  }
  if (out.port == 0) throw CommError("rank 0 has not said where it listens");
  return out;
}

BeatInvitation BeatInvitation::with_loopback() const {
  BeatInvitation out = *this;
  out.addresses.insert(out.addresses.begin(), {"127.0.0.1", "::1"});
  return out;
}

BeatListener::BeatListener() {
  socket_ = listen_at_all(AF_INET6);
  if (!socket_.is_open()) socket_ = listen_at_all(AF_INET);
  if (!socket_.is_open()) {
    throw IoError(fmt::format("cannot listen for the other ranks: {}", system_message(errno)));
  }
  invitation_ = {.secret = random_bytes(BeatInvitation::kSecretBytes),
                 .port = port_of(socket_),
                 .addresses = own_addresses()};
}

std::vector<FileDescriptor> BeatListener::accept(int ranks, Clock::time_point end) {
  std::vector<FileDescriptor> by_rank(static_cast<std::size_t>(ranks));
  std::vector<Stranger> strangers;
  std::vector<pollfd> polled;
  for (int missing = ranks - 1; missing > 0 && Clock::now() < end;) {
    // When there are too many, others wait until the oldest has had its time.
    Clock::time_point next = end;
    bool full = false;
    if (strangers.size() >= kMostStrangers) {
      const Clock::time_point over = strangers.front().since + kStrangerTime;
      full = Clock::now() < over;
      if (full) next = std::min(end, over);
    }
    polled.assign(1, {full ? -1 : socket_.get(), POLLIN, 0});
    for (const Stranger& s : strangers) polled.push_back({s.socket.get(), POLLIN, 0});
    if (::poll(polled.data(), polled.size(), milliseconds_until(next)) <= 0) continue;
    for (std::size_t i = 0; i < strangers.size(); ++i) {
      Stranger& s = strangers[i];
      if (polled[i + 1].revents == 0 || !s.listen(kAnswerBytes)) continue;
      s.lost = true;
      const int rank = rank_of(s, invitation_.secret, ranks);
      // A rank that has reached this one at several addresses goes on with the one that answers.
      if (rank < 0 || by_rank[static_cast<std::size_t>(rank)].is_open()) continue;
      const std::string_view said = s.said;
      if (!say(s.socket.get(), first_proof(invitation_.secret, s.asked, said.substr(0, kRankBytes),
                                           said.substr(kRankBytes, kNonceBytes)))) {
        continue;
      }
      by_rank[static_cast<std::size_t>(rank)] = std::move(s.socket);
      --missing;
    }
    std::erase_if(strangers, [](const Stranger& s) { return s.lost; });
    if (polled.front().revents != 0) take_in(socket_, strangers);
  }
  return by_rank;
}

FileDescriptor connect_beats(const BeatInvitation& invitation, int rank, Clock::time_point end) {
  std::vector<Stranger> strangers = start_connections(invitation);
  std::vector<pollfd> polled;
  while (!strangers.empty() && Clock::now() < end) {
    polled.clear();
    // Readable once it is connected and rank 0 has asked; an error counts as readable.
    for (const Stranger& s : strangers) polled.push_back({s.socket.get(), POLLIN, 0});
    if (::poll(polled.data(), polled.size(), milliseconds_until(end)) <= 0) continue;
    for (std::size_t i = 0; i < strangers.size(); ++i) {
      Stranger& s = strangers[i];
      if (polled[i].revents == 0) continue;
      const bool asked = s.said.size() >= kNonceBytes;
      if (!s.listen(asked ? kNonceBytes + kProofBytes : kNonceBytes)) continue;
      const std::string_view said = s.said;
      const std::string answer =
          answer_of(invitation.secret, said.substr(0, kNonceBytes), rank, s.asked);
      if (!asked) {
        s.lost = !say(s.socket.get(), answer);
      } else if (same_proof(said.substr(kNonceBytes),
                            first_proof(invitation.secret, said.substr(0, kNonceBytes),
                                        answer.substr(0, kRankBytes), s.asked))) {
        return std::move(s.socket);
      } else {
        s.lost = true;
      }
    }
    std::erase_if(strangers, [](const Stranger& s) { return s.lost; });
  }
  return {};
}

std::string address_of_peer(const FileDescriptor& socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (::getpeername(socket.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) return {};
  return address_text(reinterpret_cast<const sockaddr*>(&address));
}

}  // namespace zi
