#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace zi {

/// For handlers that compute: half of the processors that this process may use, 4 to 16. Fewer
/// would let one long request hold up short ones; each may need many times the memory of a body.
int usual_handler_threads();

/// What an HTTP server is to be; see HttpServer.
struct HttpOptions {
  std::string host = "127.0.0.1";                     // an address or a name: all of its addresses
  std::uint16_t port = 8000;                          // 0: any free one
  int threads = usual_handler_threads();              // that run the handler
  int io_threads = 2;                                 // for all connections
  int max_connections = 4096;                         // further ones get a 503
  std::size_t max_body = std::size_t{32} << 20;       // of one request; longer ones get a 413
  std::size_t max_bodies = std::size_t{1} << 30;      // of all requests together, as far as they
                                                      // came, until they are handled; further ones
                                                      // get a 503. At least max_body
  std::size_t max_unsent = std::size_t{8} << 20;      // of a stream that its client does not read
  std::chrono::milliseconds header_timeout{20'000};   // for the head of a request, and a handshake
  std::chrono::milliseconds body_timeout{30'000};     // for a body, and a second more for each
                                                      // 64 KiB of it that came; and between pieces
  std::chrono::milliseconds idle_timeout{75'000};     // between requests of a connection
  std::chrono::milliseconds send_timeout{60'000};     // for a client to take any byte
  std::chrono::milliseconds filler_interval{15'000};  // of a stream: HttpResponse::filler
  std::string cors_origin;      // `*` or an origin whose pages may use the server; empty: none
  std::string tls_certificate;  // PEM files: the certificate with its chain, and the key; both or
  std::string tls_key;          // neither
};

}  // namespace zi
