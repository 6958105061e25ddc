#pragma once

#include <memory>
#include <string>

namespace boost::asio::ssl {
class context;
}

namespace zi {

/// A server's certificate and key, for TLS 1.2 and 1.3. Any thread.
class TlsContext {
 public:
  /// PEM files. Throws ConfigError that names the one which cannot be used, and why.
  TlsContext(const std::string& certificate, const std::string& key);
  ~TlsContext();

  boost::asio::ssl::context& context() { return *context_; }

 private:
  std::unique_ptr<boost::asio::ssl::context> context_;
};

}  // namespace zi
