#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/link.h"
#include "serve/api_error.h"
#include "serve/bloom_api.h"
#include "serve/http/http_reply.h"
#include "serve/metrics.h"
#include "serve/request_fields.h"
#include "serve/request_queue.h"
#include "serve/served_model.h"

namespace zi {

/// How far a server is that loads its model. Any thread.
struct LoadingProgress {
  std::atomic<std::size_t> done{0};  // bytes of rank 0
  std::atomic<std::size_t> all{0};   // 0: it has not begun
};

/// Every endpoint of the server: checks a request, and answers it or puts it in the queue. Any
/// thread.
class Api {
 public:
  /// All that is given outlives it. `api_key`: none is asked for where it is empty.
  Api(RequestQueue& queue, Metrics& metrics, const LoadingProgress& loading, std::string api_key);
  ~Api();
  Api(const Api&) = delete;
  Api& operator=(const Api&) = delete;

  /// What the head of a request decides: without the key nothing of it is read. Waits for nothing.
  HttpAdmission admit(const HttpRequest& head) const;
  /// Answers a request that was admitted, now or when its prompts are done.
  void handle(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply);

  /// The model is loaded: requests that need it are taken from here on. `limits`: what each link
  /// can do, in bytes per second.
  void serve(std::shared_ptr<const ServedModel> model, const PerLink<double>& limits);
  /// From here on GET /health says that no new request should come.
  void begin_drain() { draining_ = true; }

 private:
  struct Call {
    const HttpRequest& request;
    const std::shared_ptr<HttpReply>& reply;
    std::shared_ptr<const ServedModel> model;  // null while it loads
  };
  struct Endpoint {
    std::string_view method;
    std::string_view path;
    bool needs_model;
    bool quick;  // neither parses nor reads files
    void (Api::*answer)(const Call&);
  };
  static const std::vector<Endpoint>& endpoints();

  /// Throws ApiError.
  void route(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  /// Why the request must not be answered; null where it may be.
  const char* key_fault(const HttpRequest& request) const;
  void submit(const Call& call, std::vector<Prompt> prompts, std::shared_ptr<PendingAnswer> answer,
              std::size_t choices = 1);
  std::shared_ptr<const ServedModel> model() const;

  void page(const Call& call);
  void health(const Call& call);
  void version(const Call& call);
  void metrics(const Call& call);
  void models(const Call& call);
  void completions(const Call& call);
  void chat_completions(const Call& call);
  void tokenize_text(const Call& call);
  void detokenize_ids(const Call& call);
  void tokenizer(const Call& call);
  void query_ids(const Call& call);
  void bloom_generate(const Call& call);
  void bloom_tokenize(const Call& call);
  void bloom_forward(const Call& call);

  RequestQueue* queue_;
  Metrics* metrics_;
  const LoadingProgress* loading_;
  std::string api_key_;
  UnknownFields unknown_;
  BloomApi bloom_;
  std::int64_t created_;
  std::atomic<bool> draining_{false};
  mutable std::mutex mutex_;
  std::shared_ptr<const ServedModel> model_;
  PerLink<double> limits_;
};

}  // namespace zi
