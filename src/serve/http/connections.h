#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "base/file_descriptor.h"
#include "serve/http/body_budget.h"
#include "serve/http/connection.h"
#include "serve/http/http_options.h"
#include "serve/http/http_reply.h"
#include "serve/http/task_pool.h"
#include "serve/http/tls_context.h"

namespace zi {

/// All connections of a server, and what they have in common: options, handler, threads, limits.
class Connections {
 public:
  /// Throws ConfigError for options that cannot work.
  Connections(HttpOptions options, HttpHandler handler, HttpAdmit admit);
  /// As HttpServer's. Nothing may come in any more.
  ~Connections();
  Connections(const Connections&) = delete;
  Connections& operator=(const Connections&) = delete;

  const std::shared_ptr<TaskPool>& io() { return io_; }
  const HttpOptions& options() const { return options_; }
  int open_requests() const { return open_requests_; }

  // Any thread.
  /// Serves a connected socket, or tells it that there are too many.
  void add(FileDescriptor socket);
  void drain();
  void abandon(const HttpResponse& response);

 private:
  void for_each(const std::function<void(Connection&)>& tell);
  void remove(Connection* connection);

  const HttpOptions options_;
  const HttpHandler handler_;
  const HttpAdmit admit_;
  const std::unique_ptr<TlsContext> tls_;  // null without TLS
  BodyBudget bodies_;
  std::atomic<int> open_requests_{0};
  std::atomic<bool> draining_{false};

  std::mutex mutex_;
  std::condition_variable removed_;
  struct Entry {
    std::shared_ptr<Connection> connection;
    bool refused = false;  // it is only told that there are too many
  };
  std::unordered_map<Connection*, Entry> all_;
  std::size_t refused_ = 0;  // of `all_`

  // Answers that outlive the server post there, in vain.
  const std::shared_ptr<TaskPool> io_;
  TaskPool workers_;
  TaskPool quick_workers_;  // for handlers that are done at once
  ConnectionHost host_;
};

}  // namespace zi
