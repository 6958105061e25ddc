#include "serve/http/listener.h"

#include <sys/socket.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <chrono>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <utility>

#include "base/system_error.h"
#include "serve/http/listening_socket.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

namespace net = boost::asio;
using boost::system::error_code;

/// Without a free descriptor the same connection is tried again; without a pause, for ever.
constexpr std::chrono::milliseconds kPause(100);
/// Connections that are accepted before other events of the thread have their turn.
constexpr int kMostAtOnce = 64;

}  // namespace

struct Listener::Sockets {
  struct Socket {
    Socket(net::io_context& context, int fd) : descriptor(context, fd), pause(context) {}
    net::posix::stream_descriptor descriptor;
    net::steady_timer pause;
  };

  void wait(Socket& socket, const OnSocket& on_socket) {
    socket.descriptor.async_wait(net::posix::stream_descriptor::wait_read,
                                 [this, &socket, &on_socket](const error_code& error) {
                                   if (!error) accept(socket, on_socket);
                                 });
  }

  void accept(Socket& socket, const OnSocket& on_socket) {
    const std::lock_guard lock(mutex);
    if (stopped) return;
    for (int i = 0; i < kMostAtOnce; ++i) {
      FileDescriptor accepted(::accept4(socket.descriptor.native_handle(), nullptr, nullptr,
                                        SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (accepted.is_open()) {
        said = false;
        hand_on(std::move(accepted), on_socket);
      } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
        break;
      } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        return pause(socket, on_socket, errno);
      }  // else: that connection is gone, or had an error of its own (accept(2))
    }
    wait(socket, on_socket);
  }

  /// What fails for one connection (no memory, say) does not end the listening.
  static void hand_on(FileDescriptor accepted, const OnSocket& on_socket) {
    try {
      on_socket(std::move(accepted));
    } catch (const std::exception& error) {
      log_error(std::string("HTTP server: a new connection: ") + error.what());
    }
  }

  void pause(Socket& socket, const OnSocket& on_socket, int error) {
    if (!std::exchange(said, true)) {
      log_warning("HTTP server: new connections wait: " + system_message(error));
    }
    socket.pause.expires_after(kPause);
    socket.pause.async_wait([this, &socket, &on_socket](const error_code& stopped_early) {
      if (!stopped_early) accept(socket, on_socket);
    });
  }

  std::mutex mutex;  // of all that is below
  std::deque<Socket> all;
  bool stopped = false;
  bool said = false;
};

Listener::Listener(std::shared_ptr<TaskPool> pool, const std::string& host, std::uint16_t port,
                   OnSocket on_socket)
    : pool_(std::move(pool)),
      on_socket_(std::move(on_socket)),
      sockets_(std::make_unique<Sockets>()) {
  ListeningSockets listening = listen_on(host, port);
  port_ = listening.port;
  for (FileDescriptor& socket : listening.sockets) {
    sockets_->all.emplace_back(pool_->context(), socket.get());
    socket.release();
  }
}

Listener::~Listener() = default;

void Listener::start() {
  const std::lock_guard lock(sockets_->mutex);
  for (Sockets::Socket& socket : sockets_->all) sockets_->wait(socket, on_socket_);
}

void Listener::stop() {
  const std::lock_guard lock(sockets_->mutex);
  sockets_->stopped = true;
  for (Sockets::Socket& socket : sockets_->all) {
    error_code error;
    socket.descriptor.close(error);
    socket.pause.cancel();
  }
}

}  // namespace zi
