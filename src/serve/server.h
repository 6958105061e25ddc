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
  /// Every open request gets the error for an answer. Any thread.
  void abandon(const ApiError& error) { queue_.abandon(error); }
  /// Requests that are open. Any thread.
  std::size_t open() const { return queue_.open(); }
  /// Waits until clients have what was answered, at most so long. Any thread.
  void flush(std::chrono::milliseconds most);
  /// The same, and cuts off what is still open: nothing asks the engine any more.
  void stop(std::chrono::milliseconds most);

 private:
  std::string name_;
  RequestDefaults defaults_;
  LoadingProgress loading_;
  AnswerThread answers_;
  RequestQueue queue_;
  Metrics metrics_;
  RequestSink sink_;
  Api api_;
  std::unique_ptr<HttpServer> http_;  // last: it calls all of the above
};

}  // namespace zi
