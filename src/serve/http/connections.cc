#include "serve/http/connections.h"

#include <fmt/format.h>

#include <utility>
#include <vector>

#include "serve/http/error_response.h"
#include "serve/http/open_files_limit.h"
#include "serve/http/response_head.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Connections beyond the limit that are told so at the same time; further ones are closed at once.
constexpr std::size_t kMostRefused = 64;

HttpOptions checked(HttpOptions options) {
  if (options.threads < 1 || options.io_threads < 1 || options.max_connections < 1) {
    throw ConfigError(
        fmt::format("an HTTP server needs threads and connections: {} threads, {} for "
                    "input and output, {} connections",
                    options.threads, options.io_threads, options.max_connections));
  }
  if (options.max_body < 1) throw ConfigError("the body of a request needs 1 byte at least");
  if (options.max_body > options.max_bodies) {
    throw ConfigError(fmt::format("the body of one request is allowed {}, all together only {}",
                                  format_memory(static_cast<double>(options.max_body)),
                                  format_memory(static_cast<double>(options.max_bodies))));
  }
  if (options.tls_certificate.empty() != options.tls_key.empty()) {
    throw ConfigError("TLS needs both a certificate and its key");
  }
  HttpResponse with_origin;
  with_origin.headers.emplace_back("Access-Control-Allow-Origin", options.cors_origin);
  if (const std::string reason = unusable_head(with_origin); !reason.empty()) {
    throw ConfigError("the CORS origin cannot be sent: " + reason);
  }
  return options;
}

std::unique_ptr<TlsContext> tls_of(const HttpOptions& options) {
  if (options.tls_certificate.empty()) return nullptr;
  return std::make_unique<TlsContext>(options.tls_certificate, options.tls_key);
}

}  // namespace

Connections::Connections(HttpOptions options, HttpHandler handler, HttpAdmit admit)
    : options_(checked(std::move(options))),
      handler_(std::move(handler)),
      admit_(std::move(admit)),
      tls_(tls_of(options_)),
      bodies_(options_.max_bodies),
      io_(std::make_shared<TaskPool>(options_.io_threads, "http-io")),
      workers_(options_.threads, "http-worker"),
      quick_workers_(1, "http-quick"),
      host_{options_,  handler_,
            admit_,    io_,
            workers_,  quick_workers_,
            bodies_,   open_requests_,
            draining_, [this](Connection* c) { remove(c); }} {
  allow_open_files(static_cast<std::size_t>(options_.max_connections) + kMostRefused);
}

Connections::~Connections() {
  draining_ = true;
  for_each([](Connection& connection) { connection.close(); });
  {
    std::unique_lock lock(mutex_);
    removed_.wait(lock, [&] { return all_.empty(); });
  }
  // Handlers that run see that their clients have left.
  workers_.stop();
  quick_workers_.stop();
  io_->finish();
}

void Connections::add(FileDescriptor socket) {
  std::shared_ptr<Connection> connection;
  bool too_many = false;
  {
    const std::lock_guard lock(mutex_);
    // Refused ones take no place of a served one: clients that try again would keep the server
    // full.
    too_many = all_.size() - refused_ >= static_cast<std::size_t>(options_.max_connections);
    // A handshake only to say no is more than a server with too much to do should pay.
    if (too_many && (tls_ != nullptr || refused_ >= kMostRefused)) return;
    connection = std::make_shared<Connection>(
        host_, open_byte_stream(*io_, tls_.get(), std::move(socket), options_.send_timeout));
    all_.emplace(connection.get(), Entry{connection, too_many});
    if (too_many) ++refused_;
  }
  if (too_many) {
    connection->refuse(error_response(503, "the server has too many connections; try again later"));
  } else {
    connection->start();
  }
}

void Connections::drain() {
  draining_ = true;
  for_each([](Connection& connection) { connection.drain(); });
}

void Connections::abandon(const HttpResponse& response) {
  draining_ = true;
  for_each([&response](Connection& connection) { connection.abandon(response); });
}

void Connections::for_each(const std::function<void(Connection&)>& tell) {
  const std::lock_guard lock(mutex_);
  for (const auto& [key, entry] : all_) tell(*entry.connection);
}

void Connections::remove(Connection* connection) {
  // The callback that calls this has another reference: nothing is destroyed under the lock.
  const std::lock_guard lock(mutex_);
  const auto entry = all_.find(connection);
  if (entry->second.refused) --refused_;
  all_.erase(entry);
  removed_.notify_all();
}

}  // namespace zi
