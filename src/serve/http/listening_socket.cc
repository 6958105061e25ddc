#include "serve/http/listening_socket.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "base/printable_text.h"
#include "base/system_error.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// For port 0: a port that is free on one address may be in use on another.
constexpr int kMostTries = 20;

/// An address that a socket can be bound to.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
  in_port_t& port() {  // in network order
    return family() == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(storage).sin6_port
                                : reinterpret_cast<sockaddr_in&>(storage).sin_port;
  }
};

std::string name_of(SocketAddress address) {
  char text[NI_MAXHOST] = "?";
  ::getnameinfo(address.get(), address.size, text, sizeof(text), nullptr, 0, NI_NUMERICHOST);
  const std::string host = address.family() == AF_INET6 ? fmt::format("[{}]", text) : text;
  return fmt::format("{}:{}", host, ntohs(address.port()));
}

std::vector<SocketAddress> addresses_of(const std::string& host) {
  const bool brackets = host.size() > 2 && host.front() == '[' && host.back() == ']';
  const std::string name = brackets ? host.substr(1, host.size() - 2) : host;
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error =
      name.empty() ? EAI_NONAME : ::getaddrinfo(name.c_str(), nullptr, &hints, &found);
  if (error != 0) {
    const std::string reason = error == EAI_SYSTEM ? system_message(errno) : ::gai_strerror(error);
    throw ConfigError(fmt::format("cannot listen on the host {}: {}", in_quotes(host), reason));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
  std::vector<SocketAddress> addresses;
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    SocketAddress address;
    std::memcpy(&address.storage, each->ai_addr, each->ai_addrlen);
    address.size = each->ai_addrlen;
    bool twice = false;
    for (const SocketAddress& other : addresses) {
      twice |= std::memcmp(&other.storage, &address.storage, sizeof(address.storage)) == 0;
    }
    if (!twice) addresses.push_back(address);
  }
  return addresses;
}

/// A socket that listens there, or an errno.
std::pair<FileDescriptor, int> try_listen(const SocketAddress& address, bool alone) {
  FileDescriptor socket(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.is_open()) return {FileDescriptor(), errno};
  const int on = 1;
  // A server can be started again while connections of the one before it are being forgotten.
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (address.family() == AF_INET6) {  // `::` serves IPv4 too, unless that is listened on by itself
    const int only_ipv6 = alone ? 0 : 1;
    ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &only_ipv6, sizeof(only_ipv6));
  }
  if (::bind(socket.get(), address.get(), address.size) != 0 ||
      ::listen(socket.get(), SOMAXCONN) != 0) {
    return {FileDescriptor(), errno};
  }
  return {std::move(socket), 0};
}

std::uint16_t port_of(const FileDescriptor& socket) {
  SocketAddress bound;
  bound.size = sizeof(bound.storage);
  ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bound.storage), &bound.size);
  return ntohs(bound.port());
}

[[noreturn]] void refuse(const SocketAddress& address, int error) {
  const char* advice = error == EADDRINUSE ? "; end the program that uses it, or take another port"
                       : error == EACCES   ? "; ports below 1024 are root's"
                       : error == EADDRNOTAVAIL ? "; it is no address of this machine"
                                                : "";
  throw ConfigError(
      fmt::format("cannot listen on {}: {}{}", name_of(address), system_message(error), advice));
}

/// Nothing where the port, which was free on the first address, is in use on another.
std::optional<ListeningSockets> try_listen_on_all(std::vector<SocketAddress> addresses,
                                                  std::uint16_t port) {
  ListeningSockets result;
  result.port = port;
  std::optional<std::pair<SocketAddress, int>> missing;
  for (SocketAddress& address : addresses) {
    address.port() = htons(result.port);
    auto [socket, error] = try_listen(address, addresses.size() == 1);
    if (error == EADDRNOTAVAIL || error == EAFNOSUPPORT) {
      if (!missing) missing.emplace(address, error);
      continue;
    }
    if (error == EADDRINUSE && port == 0 && !result.sockets.empty()) return std::nullopt;
    if (error != 0) refuse(address, error);
    if (result.port == 0) result.port = port_of(socket);
    result.sockets.push_back(std::move(socket));
  }
  if (result.sockets.empty()) refuse(missing->first, missing->second);
  return result;
}

}  // namespace

ListeningSockets listen_on(const std::string& host, std::uint16_t port) {
  const std::vector<SocketAddress> addresses = addresses_of(host);
  for (int i = 0; i < kMostTries; ++i) {
    if (auto sockets = try_listen_on_all(addresses, port)) return std::move(*sockets);
  }
  throw ConfigError(
      fmt::format("found no port that is free on all addresses of {}", in_quotes(host)));
}

}  // namespace zi
