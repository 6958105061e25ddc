#include "serve/server.h"

#include <thread>
#include <utility>

namespace zi {
namespace {

constexpr std::chrono::milliseconds kFlushPoll(5);

RequestDefaults defaults_of(const CommandLine& command) {
  const auto given = [&](const char* flag) { return command.given.contains(flag); };
  RequestDefaults defaults;
  if (given("max-new-tokens")) defaults.max_new_tokens = command.config.max_new_tokens;
  defaults.temperature = given("temperature");
  if (given("seed")) defaults.seed = command.config.seed;
  defaults.most_prompts = static_cast<std::size_t>(command.serve.max_queue);
  return defaults;
}

HttpOptions http_options(const ServeOptions& options) {
  HttpOptions http;
  http.host = options.host;
  http.port = options.port;
  http.max_body = options.max_body;
  http.cors_origin = options.cors_origin.value_or("");
  http.tls_certificate = options.tls_certificate;
  http.tls_key = options.tls_key;
  return http;
}

}  // namespace

Server::Server(const CommandLine& command)
    : name_(command.serve.served_model_name.empty() ? command.config.model
                                                    : command.serve.served_model_name),
      defaults_(defaults_of(command)),
      queue_(static_cast<std::size_t>(command.serve.max_queue), answers_),
      sink_(queue_, answers_, metrics_),
      api_(queue_, metrics_, loading_, command.serve.api_key.value_or("")),
      http_(std::make_unique<HttpServer>(
          http_options(command.serve),
          [this](HttpRequest request, std::shared_ptr<HttpReply> reply) {
            api_.handle(request, reply);
          },
          [this](const HttpRequest& head) { return api_.admit(head); })) {}

Server::~Server() = default;

void Server::stop() {
  http_.reset();
  answers_.stop();
}

LoadObserver Server::load_observer() {
  return [this](std::size_t done, std::size_t all) {
    loading_.all = all;
    // Told by several threads: never back.
    for (std::size_t before = loading_.done;
         before < done && !loading_.done.compare_exchange_weak(before, done);) {
    }
  };
}

void Server::serve(const Engine& engine, const PerLink<double>& limits) {
  api_.serve(std::make_shared<const ServedModel>(engine, name_, defaults_), limits);
}

void Server::drain() {
  api_.begin_drain();
  queue_.close();
}

bool Server::flush(std::chrono::milliseconds most) {
  const auto end = std::chrono::steady_clock::now() + most;
  if (!answers_.flush(most)) return false;
  close_port();
  return wait_for_clients(end);
}

void Server::abandon(const ApiError& error, std::chrono::milliseconds most) {
  const auto end = std::chrono::steady_clock::now() + most;
  queue_.abandon(error);
  answers_.flush(most);  // what was answered before, first
  close_port();
  http_->abandon(error.response());
  wait_for_clients(end);
}

void Server::close_port() {
  if (!port_is_closed_.exchange(true)) http_->stop_accepting();
}

bool Server::wait_for_clients(std::chrono::steady_clock::time_point end) const {
  while (http_->open_requests() > 0) {
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(kFlushPoll);
  }
  return true;
}

}  // namespace zi
