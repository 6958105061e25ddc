#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/file_descriptor.h"
#include "serve/http/task_pool.h"

namespace zi {

/// The sockets that a server listens on: one for each address of its host.
class Listener {
 public:
  /// Called on threads of the pool, with a connected socket that does not block.
  using OnSocket = std::function<void(FileDescriptor)>;

  /// Listens, and accepts nothing before `start`. `port` 0: any free one. Throws ConfigError that
  /// names the address and port which cannot be had. An address of a host of several that this
  /// machine does not have (IPv6 that is switched off) is left out.
  Listener(std::shared_ptr<TaskPool> pool, const std::string& host, std::uint16_t port,
           OnSocket on_socket);
  /// After the threads of the pool have ended.
  ~Listener();

  std::uint16_t port() const { return port_; }
  void start();
  /// Closes the sockets. Nothing is accepted once this returns. Any thread.
  void stop();

 private:
  struct Sockets;

  const std::shared_ptr<TaskPool> pool_;
  const OnSocket on_socket_;
  std::unique_ptr<Sockets> sockets_;
  std::uint16_t port_ = 0;
};

}  // namespace zi
