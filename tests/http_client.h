#pragma once

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/file_descriptor.h"

namespace zi::test {

/// A response as it came.
struct ReceivedResponse {
  int status = 0;    // 0: the connection ended before one came
  std::string head;  // with the status line and the empty line
  std::string body;  // without the framing of chunks
  bool whole = false;

  /// The value of a header; `name` in any case.
  std::optional<std::string> header(std::string_view name) const {
    const auto lower = [](std::string_view text) {
      std::string result(text);
      std::transform(result.begin(), result.end(), result.begin(),
                     [](unsigned char c) { return std::tolower(c); });
      return result;
    };
    const std::size_t at = lower(head).find("\r\n" + lower(name) + ": ");
    if (at == std::string::npos) return std::nullopt;
    const std::size_t begin = at + name.size() + 4;
    return head.substr(begin, head.find("\r\n", begin) - begin);
  }
};

/// A client of one connection that sends any bytes. Waits for half a minute at most.
class HttpClient {
 public:
  explicit HttpClient(std::uint16_t port, int receive_buffer = 0)
      : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_buffer > 0) {
      ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    const timeval most{30, 0};
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &most, sizeof(most));
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &most, sizeof(most));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ =
        ::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  }

  bool connected() const { return connected_; }
  int socket() const { return socket_.get(); }

  /// How many bytes went out before the server closed the connection.
  std::size_t send(std::string_view bytes) {
    std::size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t count =
          ::send(socket_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (count <= 0) break;
      sent += static_cast<std::size_t>(count);
    }
    return sent;
  }

  /// One request without a body.
  void get(std::string_view path, std::string_view headers = "", std::string_view method = "GET") {
    send(std::string(method) + " " + std::string(path) + " HTTP/1.1\r\nHost: x\r\n" +
         std::string(headers) + "\r\n");
  }
  void post(std::string_view path, std::string_view body, std::string_view headers = "") {
    send("POST " + std::string(path) + " HTTP/1.1\r\nHost: x\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n" + std::string(headers) + "\r\n" + std::string(body));
  }

  /// Everything up to and with `text`; less where the connection ends before it.
  std::string read_to(std::string_view text) {
    while (received_.find(text) == std::string::npos && receive()) {
    }
    const std::size_t at = received_.find(text);
    return take(at == std::string::npos ? received_.size() : at + text.size());
  }
  /// `count` bytes; less where the connection ends before.
  std::string read_bytes(std::size_t count) {
    while (received_.size() < count && receive()) {
    }
    return take(std::min(count, received_.size()));
  }
  std::string read_to_end() {
    while (receive()) {
    }
    return take(received_.size());
  }

  ReceivedResponse read_response(bool head_only = false) {
    ReceivedResponse response;
    response.head = read_to("\r\n\r\n");
    if (!response.head.ends_with("\r\n\r\n")) return response;
    response.status = std::atoi(response.head.c_str() + std::string_view("HTTP/1.1 ").size());
    response.whole = true;
    if (head_only || response.status < 200 || response.status == 204) return response;
    if (const auto length = response.header("Content-Length")) {
      const auto bytes = static_cast<std::size_t>(std::atoll(length->c_str()));
      response.body = read_bytes(bytes);
      response.whole = response.body.size() == bytes;
    } else if (response.header("Transfer-Encoding")) {
      for (bool more = true; more;) {
        const auto chunk = read_chunk();
        response.whole = chunk.has_value();
        more = chunk && !chunk->empty();
        if (more) response.body += *chunk;
      }
    } else {
      response.body = read_to_end();
    }
    return response;
  }
  /// Empty: the last one. None: the connection ended.
  std::optional<std::string> read_chunk() {
    const std::string size = read_to("\r\n");
    if (!size.ends_with("\r\n")) return std::nullopt;
    const std::size_t bytes = std::strtoull(size.c_str(), nullptr, 16);
    const std::string chunk = read_bytes(bytes + 2);
    if (chunk.size() != bytes + 2 || !chunk.ends_with("\r\n")) return std::nullopt;
    return chunk.substr(0, bytes);
  }

  /// Whether the server closes the connection, and sends nothing before.
  bool ended() { return received_.empty() && !receive() && !timed_out_; }

  void shut_down_sending() { ::shutdown(socket_.get(), SHUT_WR); }
  void close() { socket_ = FileDescriptor(); }
  /// Closes with a reset, as a process does that ends with unread bytes.
  void reset() {
    const linger now{1, 0};
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close();
  }

 private:
  bool receive() {
    char bytes[16384];
    const ssize_t count = ::recv(socket_.get(), bytes, sizeof(bytes), 0);
    timed_out_ = count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    if (count <= 0) return false;
    received_.append(bytes, static_cast<std::size_t>(count));
    return true;
  }
  std::string take(std::size_t count) {
    std::string taken = received_.substr(0, count);
    received_.erase(0, count);
    return taken;
  }

  FileDescriptor socket_;
  std::string received_;
  bool connected_ = false;
  bool timed_out_ = false;
};

}  // namespace zi::test
