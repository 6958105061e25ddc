#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "serve/http/http_server.h"
#include "tests/http_fixture.h"
#include "tests/temporary_directory.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using test::echo;
using test::HttpClient;
using test::on_any_port;
using test::text_response;
using test::wait_until;
using ::testing::AllOf;
using ::testing::HasSubstr;

template <auto free>
struct Free {
  template <typename T>
  void operator()(T* object) const {
    free(object);
  }
};

/// Writes a key, and a certificate of that key for `localhost`.
void write_certificate(const std::filesystem::path& certificate, const std::filesystem::path& key) {
  const std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>> pair(EVP_EC_gen("P-256"));
  const std::unique_ptr<X509, Free<X509_free>> made(X509_new());
  ASN1_INTEGER_set(X509_get_serialNumber(made.get()), 1);
  X509_gmtime_adj(X509_getm_notBefore(made.get()), -3600);
  X509_gmtime_adj(X509_getm_notAfter(made.get()), 3600);
  X509_set_pubkey(made.get(), pair.get());
  X509_NAME* name = X509_get_subject_name(made.get());
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
  X509_set_issuer_name(made.get(), name);
  X509_sign(made.get(), pair.get(), EVP_sha256());
  const std::unique_ptr<std::FILE, Free<std::fclose>> to(std::fopen(certificate.c_str(), "w"));
  PEM_write_X509(to.get(), made.get());
  const std::unique_ptr<std::FILE, Free<std::fclose>> key_to(std::fopen(key.c_str(), "w"));
  PEM_write_PrivateKey(key_to.get(), pair.get(), nullptr, nullptr, 0, nullptr, nullptr);
}

/// A client that trusts that certificate alone.
class TlsClient {
 public:
  TlsClient(std::uint16_t port, const std::filesystem::path& certificate,
            int most_version = TLS1_3_VERSION)
      : tcp_(port), context_(SSL_CTX_new(TLS_client_method())) {
    SSL_CTX_load_verify_locations(context_.get(), certificate.c_str(), nullptr);
    SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
    SSL_CTX_set_max_proto_version(context_.get(), most_version);
    SSL_CTX_set_security_level(context_.get(), 0);
    ssl_.reset(SSL_new(context_.get()));
    SSL_set_fd(ssl_.get(), tcp_.socket());
    connected_ = SSL_connect(ssl_.get()) == 1;
  }

  bool connected() const { return connected_; }
  void send(std::string_view bytes) {
    for (std::size_t sent = 0; sent < bytes.size();) {
      std::size_t count = 0;
      if (SSL_write_ex(ssl_.get(), bytes.data() + sent, bytes.size() - sent, &count) != 1) return;
      sent += count;
    }
  }
  std::string read_to(std::string_view text) {
    std::string read;
    char byte;
    std::size_t count = 0;
    while (!read.ends_with(text) && SSL_read_ex(ssl_.get(), &byte, 1, &count) == 1) read += byte;
    return read;
  }
  /// Whether the server says that it has sent all, as TLS does.
  bool ended() {
    char byte;
    const int count = SSL_read(ssl_.get(), &byte, 1);
    return count <= 0 && SSL_get_error(ssl_.get(), count) == SSL_ERROR_ZERO_RETURN;
  }
  void say_goodbye() { SSL_shutdown(ssl_.get()); }
  HttpClient& tcp() { return tcp_; }

 private:
  HttpClient tcp_;
  std::unique_ptr<SSL_CTX, Free<SSL_CTX_free>> context_;
  std::unique_ptr<SSL, Free<SSL_free>> ssl_;
  bool connected_ = false;
};

class HttpTls : public ::testing::Test {
 protected:
  HttpTls() { write_certificate(certificate_, key_); }

  HttpOptions options() const {
    HttpOptions options = on_any_port();
    options.tls_certificate = certificate_;
    options.tls_key = key_;
    return options;
  }

  test::TemporaryDirectory directory_;
  const std::filesystem::path certificate_ = directory_.path() / "certificate.pem";
  const std::filesystem::path key_ = directory_.path() / "key.pem";
};

TEST_F(HttpTls, CarriesRequestsStreamsAndTheEndOfTheConnection) {
  const HttpServer server(options(), [](HttpRequest request, std::shared_ptr<HttpReply> reply) {
    if (request.path != "/stream") return echo(std::move(request), std::move(reply));
    reply->begin_stream(text_response(""));
    for (int i = 0; i < 1000; ++i) reply->write(std::string(1000, 'a'));
    reply->end();
  });
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    TlsClient client(server.port(), certificate_, version);
    ASSERT_TRUE(client.connected());
    client.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_THAT(client.read_to("GET /a "), HasSubstr("200 OK"));
    const std::string body(1'000'000, 'b');
    client.send("POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + body);
    EXPECT_THAT(client.read_to("POST /b " + body), HasSubstr("Content-Length: 1000008"));
    client.send("GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    EXPECT_GT(client.read_to("\r\n0\r\n\r\n").size(), 1'000'000u);
    EXPECT_TRUE(client.ended());
  }
}

TEST_F(HttpTls, RefusesOldVersionsAndClientsWithoutTls) {
  const HttpServer server(options(), echo);
  EXPECT_FALSE(TlsClient(server.port(), certificate_, TLS1_1_VERSION).connected());
  HttpClient plain(server.port());
  plain.get("/");
  EXPECT_EQ(plain.read_to_end().find("HTTP"), std::string::npos);
  EXPECT_TRUE(TlsClient(server.port(), certificate_).connected());
}

TEST_F(HttpTls, AHandshakeThatDoesNotComeIsGivenUp) {
  HttpOptions impatient = options();
  impatient.header_timeout = std::chrono::milliseconds(200);
  const HttpServer server(impatient, echo);
  HttpClient silent(server.port());
  EXPECT_TRUE(silent.ended());
}

TEST_F(HttpTls, NoticesClientsThatLeave) {
  std::atomic<int> calls{0};
  std::shared_ptr<HttpReply> held;
  std::atomic<bool> waiting{false};
  HttpServer server(options(), [&](HttpRequest, std::shared_ptr<HttpReply> reply) {
    reply->on_left([&] { ++calls; });
    reply->begin_stream(text_response(""));
    held = std::move(reply);
    waiting = true;
  });
  for (int way = 0; way < 3; ++way) {
    TlsClient client(server.port(), certificate_);
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    ASSERT_TRUE(wait_until([&] { return waiting.exchange(false); }));
    if (way == 0) client.say_goodbye();
    if (way == 1) client.tcp().close();
    if (way == 2) client.tcp().reset();
    EXPECT_TRUE(wait_until([&] { return calls == way + 1; })) << way;
    held->end();
    EXPECT_TRUE(wait_until([&] { return server.open_requests() == 0; }));
  }
}

TEST_F(HttpTls, EndsWithOpenConnections) {
  std::shared_ptr<HttpReply> held;
  auto server =
      std::make_unique<HttpServer>(options(), [&](HttpRequest, std::shared_ptr<HttpReply> reply) {
        held = std::move(reply);
        held->begin_stream(text_response(""));
      });
  TlsClient idle(server->port(), certificate_);
  TlsClient streaming(server->port(), certificate_);
  streaming.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(streaming.read_to("\r\n\r\n"), HasSubstr("200 OK"));
  HttpClient silent(server->port());
  server.reset();
  EXPECT_TRUE(silent.ended());
}

TEST_F(HttpTls, FilesThatCannotBeUsedAreNamed) {
  const auto refusal = [](const HttpOptions& refused) -> std::string {
    try {
      const HttpServer server(refused, echo);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  HttpOptions wrong = options();
  wrong.tls_certificate = directory_.path() / "missing.pem";
  EXPECT_THAT(refusal(wrong), AllOf(HasSubstr("certificate"), HasSubstr("missing.pem"),
                                    HasSubstr("No such file or directory")));
  wrong.tls_certificate = directory_.path();
  EXPECT_THAT(refusal(wrong), HasSubstr("Is a directory"));
  wrong = options();
  wrong.tls_key = directory_.path() / "missing.pem";
  EXPECT_THAT(refusal(wrong), AllOf(HasSubstr("key"), HasSubstr("No such file or directory")));
  wrong.tls_key = certificate_;
  EXPECT_THAT(refusal(wrong), AllOf(HasSubstr("key"), HasSubstr("certificate.pem")));
  const std::filesystem::path other = directory_.path() / "other.pem";
  write_certificate(directory_.path() / "unused.pem", other);
  wrong.tls_key = other;
  EXPECT_THAT(refusal(wrong), HasSubstr("other.pem"));
}

}  // namespace
}  // namespace zi
