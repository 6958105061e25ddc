#include "serve/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <exception>
#include <utility>

#include "base/printable_text.h"
#include "serve/chat_answer.h"
#include "serve/chat_completion_request.h"
#include "serve/completion_answer.h"
#include "serve/completion_request.h"
#include "serve/page/page.h"
#include "serve/tokenizer_endpoints.h"
#include "zero_infer/bytes.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

void send(const std::shared_ptr<HttpReply>& reply, const Json& body, int status = 200) {
  HttpResponse response;
  response.status = status;
  response.body = dump(body);
  reply->send(std::move(response));
}

/// In a time that does not tell how much of it is right.
bool same_key(std::string_view given, std::string_view key) {
  unsigned different = given.size() != key.size() ? 1 : 0;
  for (std::size_t i = 0; i < given.size(); ++i) {
    const auto other = static_cast<unsigned char>(key[i % key.size()]);
    different |= static_cast<unsigned>(static_cast<unsigned char>(given[i]) ^ other);
  }
  return different == 0;
}

/// What the header holds behind `Bearer`, in whatever case that is written (RFC 9110, 11.1); empty
/// for another scheme.
std::string_view bearer_token(std::string_view header) {
  constexpr std::string_view kScheme = "bearer";
  const bool bearer =
      header.size() > kScheme.size() && header[kScheme.size()] == ' ' &&
      std::equal(kScheme.begin(), kScheme.end(), header.begin(),
                 [](char s, char c) { return s == std::tolower(static_cast<unsigned char>(c)); });
  if (!bearer) return {};
  return header.substr(std::min(header.find_first_not_of(' ', kScheme.size()), header.size()));
}

constexpr std::string_view kModelPath = "/v1/models/";

/// The endpoint that a path stands for: those of the models are one.
std::string_view endpoint_path(std::string_view path) {
  return path.starts_with(kModelPath) ? "/v1/models" : path;
}

/// Of a request whose body nobody reads.
constexpr std::size_t kMostUnreadBody = std::size_t{64} << 10;

}  // namespace

const std::vector<Api::Endpoint>& Api::endpoints() {
  static const std::vector<Endpoint> all = {
      {"GET", "/", false, true, &Api::page},
      {"GET", "/health", false, true, &Api::health},
      {"GET", "/version", false, true, &Api::version},
      {"GET", "/metrics", false, true, &Api::metrics},
      {"GET", "/v1/models", true, true, &Api::models},
      {"POST", "/v1/completions", true, false, &Api::completions},
      {"POST", "/v1/chat/completions", true, false, &Api::chat_completions},
      {"POST", "/tokenize", true, false, &Api::tokenize_text},
      {"POST", "/detokenize", true, false, &Api::detokenize_ids},
      {"GET", "/tokenizer_info", true, false, &Api::tokenizer},
      {"GET", "/query_id/", false, true, &Api::query_ids},
      {"POST", "/generate/", true, false, &Api::bloom_generate},
      {"POST", "/tokenize/", true, false, &Api::bloom_tokenize},
      {"POST", "/forward/", true, false, &Api::bloom_forward},
  };
  return all;
}

Api::Api(RequestQueue& queue, Metrics& metrics, const LoadingProgress& loading, std::string api_key)
    : queue_(&queue),
      metrics_(&metrics),
      loading_(&loading),
      api_key_(std::move(api_key)),
      created_(std::chrono::duration_cast<std::chrono::seconds>(
                   std::chrono::system_clock::now().time_since_epoch())
                   .count()) {}

Api::~Api() = default;

void Api::serve(std::shared_ptr<const ServedModel> model, const PerLink<double>& limits) {
  const std::scoped_lock lock(mutex_);
  model_ = std::move(model);
  limits_ = limits;
}

std::shared_ptr<const ServedModel> Api::model() const {
  const std::scoped_lock lock(mutex_);
  return model_;
}

void Api::handle(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  try {
    route(request, reply);
  } catch (const ApiError& error) {
    log_verbose(fmt::format("{} {} {}: {} {}", request.peer, request.method,
                            in_quotes(request.path), error.status(), error.what()));
    reply->send(error.response());
  } catch (const std::exception& error) {
    log_error(fmt::format("{} {}: {}", request.method, in_quotes(request.path), error.what()));
    reply->send(ApiError::failed("the server failed; its log says why").response());
  }
}

const char* Api::key_fault(const HttpRequest& request) const {
  // The page is the same for everyone, and asks for the key itself.
  if (api_key_.empty() || request.path == "/health" || request.path == "/") return nullptr;
  const std::string_view header = request.header("authorization");
  if (header.empty()) return "no API key: send `Authorization: Bearer KEY`";
  return same_key(bearer_token(header), api_key_) ? nullptr : "the API key is wrong";
}

HttpAdmission Api::admit(const HttpRequest& head) const {
  if (const char* const fault = key_fault(head)) {
    log_verbose(fmt::format("{} {}: {}", head.method, in_quotes(head.path), fault));
    HttpResponse refusal =
        ApiError(401, fault, {.type = "authentication_error", .code = "invalid_api_key"})
            .response();
    refusal.headers.emplace_back("WWW-Authenticate", "Bearer");
    return {.refusal = std::move(refusal)};
  }
  const std::vector<Endpoint>& all = endpoints();
  const auto found = std::ranges::find_if(all, [&](const Endpoint& endpoint) {
    return endpoint.path == endpoint_path(head.path) && endpoint.method == head.method;
  });
  if (found != all.end() && found->method == "POST") return {};
  return {.quick = found == all.end() || found->quick, .max_body = kMostUnreadBody};
}

void Api::route(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  const std::string_view path = endpoint_path(request.path);
  std::string allowed;
  for (const Endpoint& endpoint : endpoints()) {
    if (endpoint.path != path) continue;
    if (endpoint.method != request.method) {
      allowed = endpoint.method;
      continue;
    }
    const Call call{request, reply, model()};
    if (endpoint.needs_model && call.model == nullptr) {
      throw ApiError::unavailable("the model is still loading; GET /health says how far it is");
    }
    (this->*endpoint.answer)(call);
    return;
  }
  if (allowed.empty()) {
    throw ApiError(404, fmt::format("there is no {}", in_quotes(request.path)),
                   {.code = "not_found"});
  }
  HttpResponse response =
      ApiError(405, fmt::format("{} takes {} alone", path, allowed), {.code = "method_not_allowed"})
          .response();
  response.headers.emplace_back("Allow", allowed);
  reply->send(std::move(response));
}

void Api::submit(const Call& call, std::vector<Prompt> prompts,
                 std::shared_ptr<PendingAnswer> answer, std::size_t choices) {
  const RequestQueue::Ticket ticket = queue_->submit(std::move(prompts), answer, choices);
  call.reply->on_left([queue = queue_, ticket] { queue->cancel(ticket); });
  answer->accepted();
}

void Api::health(const Call& call) {
  Json body;
  if (call.model == nullptr) {
    const std::size_t all = loading_->all;
    const std::size_t done = loading_->done;
    body["status"] = "loading";
    body["loaded_bytes"] = done;
    body["total_bytes"] = all;
    body["progress"] = all > 0 ? static_cast<double>(done) / static_cast<double>(all) : 0.0;
  } else {
    body["status"] = draining_ ? "ending" : "ready";
  }
  send(call.reply, body, call.model != nullptr && !draining_ ? 200 : 503);
}

void Api::page(const Call& call) {
  HttpResponse response;
  response.content_type = "text/html; charset=utf-8";
  response.body = page_html();
  response.headers = {{"Content-Security-Policy", std::string(page_policy())},
                      {"X-Content-Type-Options", "nosniff"},
                      {"Referrer-Policy", "no-referrer"},
                      {"Cache-Control", "no-cache"}};
  call.reply->send(std::move(response));
}

void Api::version(const Call& call) { send(call.reply, Json{{"version", ZI_VERSION}}); }

void Api::metrics(const Call& call) {
  const PerLink<double> limits = [this] {
    const std::scoped_lock lock(mutex_);
    return limits_;
  }();
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = metrics_->text({.model = call.model ? call.model->name() : std::string_view(),
                                  .waiting = queue_->waiting(),
                                  .cancelled_requests = queue_->cancelled_requests(),
                                  .limits = limits});
  call.reply->send(std::move(response));
}

void Api::models(const Call& call) {
  const std::string_view path = call.request.path;
  if (!path.starts_with(kModelPath)) {
    send(call.reply, model_list(*call.model, created_));
    return;
  }
  const std::string_view name = path.substr(kModelPath.size());
  if (name != call.model->name()) {
    throw ApiError(404, fmt::format("the model {} does not exist", in_quotes(name)),
                   {.param = "model", .code = "model_not_found"});
  }
  send(call.reply, model_card(*call.model, created_));
}

void Api::completions(const Call& call) {
  GenerationRequest request = read_completion_request(call.request.body, *call.model, unknown_);
  std::vector<Prompt> prompts = request.prompts;
  const std::size_t choices = request.shape.choices;
  submit(call, std::move(prompts),
         std::make_shared<CompletionAnswer>(call.reply, call.model, std::move(request)), choices);
}

void Api::chat_completions(const Call& call) {
  GenerationRequest request =
      read_chat_completion_request(call.request.body, *call.model, unknown_);
  std::vector<Prompt> prompts = request.prompts;
  const std::size_t choices = request.shape.choices;
  submit(call, std::move(prompts),
         std::make_shared<ChatAnswer>(call.reply, call.model, std::move(request)), choices);
}

void Api::tokenize_text(const Call& call) {
  send(call.reply, tokenize(call.request.body, *call.model, unknown_));
}

void Api::detokenize_ids(const Call& call) {
  send(call.reply, detokenize(call.request.body, *call.model, unknown_));
}

void Api::tokenizer(const Call& call) { send(call.reply, tokenizer_info(*call.model)); }

void Api::query_ids(const Call& call) { send(call.reply, bloom_.query_ids()); }

void Api::bloom_generate(const Call& call) {
  BloomApi::Run run = bloom_.generate(call.request.body, call.reply, *call.model, unknown_);
  submit(call, std::move(run.prompts), std::move(run.answer));
}

void Api::bloom_tokenize(const Call& call) {
  send(call.reply, bloom_.tokenize(call.request.body, *call.model, unknown_));
}

void Api::bloom_forward(const Call& call) {
  BloomApi::Run run = bloom_.forward(call.request.body, call.reply, *call.model, unknown_);
  submit(call, std::move(run.prompts), std::move(run.answer));
}

}  // namespace zi
