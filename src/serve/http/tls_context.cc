#include "serve/http/tls_context.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/ssl.h>
#include <unistd.h>

#include <boost/asio/ssl/context.hpp>
#include <cerrno>

#include "base/file_descriptor.h"
#include "base/system_error.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

namespace ssl = boost::asio::ssl;

/// The TLS library does not say why a file cannot be read.
void check_readable(const char* what, const std::string& file) {
  const FileDescriptor opened(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  char byte = 0;
  if (opened.is_open() && ::read(opened.get(), &byte, 1) >= 0) return;
  const int error = errno;
  throw ConfigError(
      fmt::format("the TLS {} {} cannot be read: {}", what, file, system_message(error)));
}

void check(const boost::system::error_code& error, const char* what, const std::string& file) {
  if (!error) return;
  throw ConfigError(fmt::format("the TLS {} {} cannot be used: {}", what, file, error.message()));
}

}  // namespace

TlsContext::TlsContext(const std::string& certificate, const std::string& key)
    : context_(std::make_unique<ssl::context>(ssl::context::tls_server)) {
  context_->set_options(ssl::context::default_workarounds | ssl::context::no_sslv2 |
                        ssl::context::no_sslv3 | ssl::context::no_tlsv1 | ssl::context::no_tlsv1_1 |
                        ssl::context::no_compression);
  // Handshakes cost a server more than its client: one a connection.
  ::SSL_CTX_set_options(context_->native_handle(), SSL_OP_NO_RENEGOTIATION);
  // An idle connection gives its buffers of 34 KiB back.
  ::SSL_CTX_set_mode(context_->native_handle(), SSL_MODE_RELEASE_BUFFERS);
  check_readable("certificate", certificate);
  check_readable("key", key);
  boost::system::error_code error;
  context_->use_certificate_chain_file(certificate, error);
  check(error, "certificate", certificate);
  context_->use_private_key_file(key, ssl::context::pem, error);
  check(error, "key", key);
}

TlsContext::~TlsContext() = default;

}  // namespace zi
