#include "serve/http/byte_stream.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <boost/asio/bind_executor.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <optional>
#include <utility>

namespace zi {
namespace {

namespace net = boost::asio;
using boost::system::error_code;
using net::ip::tcp;

/// A peer whose machine is gone, on a connection that waits for it.
constexpr int kKeepAliveIdleSeconds = 60;
constexpr int kKeepAliveIntervalSeconds = 10;
constexpr int kKeepAliveProbes = 6;

/// What a system refuses of these is not needed for right answers.
void set_option(int socket, int level, int name, int value) {
  ::setsockopt(socket, level, name, &value, sizeof(value));
}

void set_options(int socket, std::chrono::milliseconds send_timeout) {
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, kKeepAliveIdleSeconds);
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, kKeepAliveIntervalSeconds);
  set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, kKeepAliveProbes);
  set_option(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(send_timeout.count()));
}

int family_of(int socket) {
  int family = AF_INET;
  socklen_t size = sizeof(family);
  ::getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &family, &size);
  return family;
}

/// An IPv4 client of a socket that serves both has its own address.
std::string name_of_peer(const tcp::socket& socket) {
  error_code error;
  const tcp::endpoint peer = socket.remote_endpoint(error);
  if (error) return "a client that has left";
  const net::ip::address address = peer.address();
  if (address.is_v6() && !address.to_v6().is_v4_mapped()) {
    return fmt::format("[{}]:{}", address.to_string(), peer.port());
  }
  const auto v4 = address.is_v4() ? address.to_v4()
                                  : net::ip::make_address_v4(net::ip::v4_mapped, address.to_v6());
  return fmt::format("{}:{}", v4.to_string(), peer.port());
}

ByteStream::Outcome outcome_of(const error_code& error) {
  if (!error) return ByteStream::Outcome::kDone;
  // A peer that closes without TLS's own goodbye has ended all the same.
  const bool ended = error == net::error::eof || error == net::ssl::error::stream_truncated;
  return ended ? ByteStream::Outcome::kEnded : ByteStream::Outcome::kFailed;
}

auto with_bytes(ByteStream::Done done) {
  return [done = std::move(done)](const error_code& error, std::size_t bytes) {
    done(outcome_of(error), bytes);
  };
}

auto without_bytes(ByteStream::Done done) {
  return [done = std::move(done)](const error_code& error) { done(outcome_of(error), 0); };
}

class SocketStream : public ByteStream {
 public:
  SocketStream(net::io_context& context, TlsContext* tls, FileDescriptor socket,
               std::chrono::milliseconds send_timeout)
      : strand_(net::make_strand(context)), socket_(strand_), timer_(strand_) {
    set_options(socket.get(), send_timeout);
    socket_.assign(family_of(socket.get()) == AF_INET6 ? tcp::v6() : tcp::v4(), socket.get());
    socket.release();
    peer_ = name_of_peer(socket_);
    if (tls != nullptr) tls_.emplace(socket_, tls->context());
  }

  const std::string& peer() const override { return peer_; }

  void post(std::function<void()> task) override { net::post(strand_, std::move(task)); }

  void wake_at(TimePoint time, std::function<void()> wake) override {
    timer_.expires_at(time);
    timer_.async_wait([wake = std::move(wake)](const error_code& error) {
      if (!error) wake();
    });
  }

  void handshake(Done done) override {
    if (!tls_) return post([done = std::move(done)] { done(Outcome::kDone, 0); });
    tls_->async_handshake(net::ssl::stream_base::server, without_bytes(std::move(done)));
  }

  void read_some(std::span<char> to, Done done) override {
    const auto buffer = net::buffer(to.data(), to.size());
    if (tls_) {
      tls_->async_read_some(buffer, with_bytes(std::move(done)));
    } else {
      socket_.async_read_some(buffer, with_bytes(std::move(done)));
    }
  }

  void write_some(std::string_view from, Done done) override {
    const auto buffer = net::buffer(from.data(), from.size());
    if (tls_) {
      tls_->async_write_some(buffer, with_bytes(std::move(done)));
    } else {
      socket_.async_write_some(buffer, with_bytes(std::move(done)));
    }
  }

  void end_writing(Done done) override {
    if (tls_) {
      tls_->async_shutdown(without_bytes(std::move(done)));
      return;
    }
    error_code error;
    socket_.shutdown(tcp::socket::shutdown_send, error);
    post([done = std::move(done), error] { done(outcome_of(error), 0); });
  }

  bool peer_has_ended() override {
    pollfd look{.fd = socket_.native_handle(), .events = POLLRDHUP, .revents = 0};
    return ::poll(&look, 1, 0) > 0;
  }

  void close() override {
    error_code error;  // there is nobody to tell
    timer_.cancel();
    socket_.close(error);
  }

 private:
  const net::strand<net::io_context::executor_type> strand_;
  tcp::socket socket_;
  std::optional<net::ssl::stream<tcp::socket&>> tls_;
  net::steady_timer timer_;
  std::string peer_;
};

}  // namespace

std::unique_ptr<ByteStream> open_byte_stream(TaskPool& pool, TlsContext* tls, FileDescriptor socket,
                                             std::chrono::milliseconds send_timeout) {
  return std::make_unique<SocketStream>(pool.context(), tls, std::move(socket), send_timeout);
}

}  // namespace zi
