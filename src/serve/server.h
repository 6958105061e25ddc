#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "base/link.h"
#include "engine/engine.h"
#include "serve/answer_thread.h"
#include "serve/api.h"
#include "serve/http/http_server.h"
#include "serve/metrics.h"
#include "serve/request_queue.h"
#include "serve/request_sink.h"
#include "zero_infer/run_config.h"

namespace zi {

/// The server of rank 0, without the ranks that work for it: from the port to prompts and back.
class Server {
 public:
  /// Listens. Requests that need the model get a 503 until `serve`. Throws ConfigError for an
  /// address that cannot be had.
  explicit Server(const CommandLine& command);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// The model's, in the API.
  const std::string& name() const { return name_; }
  std::uint16_t port() const { return http_->port(); }
  /// For the engine that loads the model; outlived by this.
  LoadObserver load_observer();
  /// The model is loaded: requests are taken. The engine must live until `stop`.
  void serve(const Engine& engine, const PerLink<double>& limits);

  /// For Engine::generate.
  PromptSource& source() { return queue_; }
  OutputSink& sink() { return sink_; }

  /// No new requests; those that are open go on, and the source is exhausted behind them. Any
  /// thread.
  void drain();
  /// Requests that are open. Any thread.
  std::size_t open() const { return queue_.open(); }
  /// For a server whose requests have ended. Closes the port, and waits until clients have what was
  /// answered and no request is left, at most so long; whether it came to that. Any thread.
  bool flush(std::chrono::milliseconds most);
  /// Every open request gets the error for an answer, also where a handler is still at it. Waits at
  /// most so long until clients have it. Any thread.
  void abandon(const ApiError& error, std::chrono::milliseconds most);
  /// Cuts off what is still open, and waits for handlers that run: nothing asks the engine any
  /// more. Nothing else may be called any more.
  void stop();

 private:
  void close_port();
  bool wait_for_clients(std::chrono::steady_clock::time_point end) const;

  std::string name_;
  RequestDefaults defaults_;
  LoadingProgress loading_;
  AnswerThread answers_;
  RequestQueue queue_;
  Metrics metrics_;
  RequestSink sink_;
  Api api_;
  std::atomic<bool> port_is_closed_{false};
  std::unique_ptr<HttpServer> http_;  // last: it calls all of the above
};

}  // namespace zi
