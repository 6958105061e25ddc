#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace zi {

struct HttpOptions {
  std::string host = "127.0.0.1";                    // an address or a name: all of its addresses
  std::uint16_t port = 8000;                         // 0: any free one
  int threads = 4;                                   // that run the handler
  int io_threads = 2;                                // for all connections
  int max_connections = 4096;                        // further ones get a 503
  std::size_t max_body = std::size_t{32} << 20;      // of one request; longer ones get a 413
  std::size_t max_bodies = std::size_t{1} << 30;     // of all requests together, while they are
                                                     // read and handled; further ones get a 503
  std::size_t max_unsent = std::size_t{8} << 20;     // of a stream that its client does not read
  std::chrono::milliseconds header_timeout{20'000};  // for the head of a request, and a handshake
  std::chrono::milliseconds body_timeout{30'000};    // for a body, and a second more for each
                                                     // 64 KiB of it that came
  std::chrono::milliseconds idle_timeout{75'000};    // between requests of a connection
  std::chrono::milliseconds send_timeout{60'000};    // for a client to take any byte
  std::string cors_origin;      // `*` or an origin whose pages may use the server; empty: none
  std::string tls_certificate;  // PEM files: the certificate with its chain, and the key; both or
  std::string tls_key;          // neither
};

}  // namespace zi
