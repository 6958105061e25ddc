#pragma once

#include <cstdint>
#include <memory>

#include "serve/http/http_options.h"
#include "serve/http/http_reply.h"

namespace zi {

class Connections;
class Listener;

/// An HTTP/1.1 server. Its threads block all signals: these are the main thread's.
class HttpServer {
 public:
  /// Listens, and answers from here on. Raises the limit of open files to what `max_connections`
  /// needs, or says in the log that it cannot. Throws ConfigError that names the address and port
  /// which cannot be had, or what is wrong with the certificate. Without `admit` every request is
  /// admitted, and none is quick.
  HttpServer(HttpOptions options, HttpHandler handler, HttpAdmit admit = {});
  /// Closes every connection, waits for handlers that run, and joins all threads. Nothing is called
  /// back afterwards; replies may live longer. Not to be called on a thread of the server.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  /// The one that clients connect to.
  std::uint16_t port() const;
  /// For a server that is about to end: the port is closed when this returns, requests that were
  /// begun get their answers, and connections close behind these. Any thread.
  void stop_accepting();
  /// The same, and every request that was begun and has no answer yet gets this one, also while its
  /// handler runs. Any thread.
  void abandon(const HttpResponse& response);
  /// Requests whose head has been read and whose answer has not been handed to the network whole,
  /// of clients that are there. Any thread.
  int open_requests() const;

 private:
  std::unique_ptr<Connections> connections_;
  std::unique_ptr<Listener> listener_;
};

}  // namespace zi
