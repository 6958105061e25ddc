#include "serve/http/http_server.h"

#include <utility>

#include "serve/http/connections.h"
#include "serve/http/listener.h"

namespace zi {

HttpServer::HttpServer(HttpOptions options, HttpHandler handler, HttpAdmit admit)
    : connections_(
          std::make_unique<Connections>(std::move(options), std::move(handler), std::move(admit))) {
  const HttpOptions& used = connections_->options();
  listener_ = std::make_unique<Listener>(
      connections_->io(), used.host, used.port,
      [this](FileDescriptor socket) { connections_->add(std::move(socket)); });
  listener_->start();
}

HttpServer::~HttpServer() {
  listener_->stop();
  connections_.reset();  // ends the threads that the listener's callbacks run on
}

std::uint16_t HttpServer::port() const { return listener_->port(); }

void HttpServer::stop_accepting() {
  listener_->stop();
  connections_->drain();
}

void HttpServer::abandon(const HttpResponse& response) {
  listener_->stop();
  connections_->abandon(response);
}

int HttpServer::open_requests() const { return connections_->open_requests(); }

}  // namespace zi
