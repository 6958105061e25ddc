#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/file_descriptor.h"
#include "serve/http/task_pool.h"
#include "serve/http/tls_context.h"

namespace zi {

/// A connected socket, plain or with TLS, on the threads of a pool. Its callbacks run one at a time
/// (on one strand), and nowhere else may its functions be called, `post` and `peer` excepted. What
/// an operation works on, and the stream itself, must live until its callback is called or dropped.
class ByteStream {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  enum class Outcome { kDone, kEnded, kFailed };  // kEnded: of a read, there is no more to come
  using Done = std::function<void(Outcome, std::size_t bytes)>;

  virtual ~ByteStream() = default;
  /// "127.0.0.1:54321". Any thread.
  virtual const std::string& peer() const = 0;
  /// Calls `task` in turn with the callbacks. Any thread.
  virtual void post(std::function<void()> task) = 0;
  /// Calls `wake` at that time, or too early; replaces the time that was set before.
  virtual void wake_at(TimePoint time, std::function<void()> wake) = 0;

  /// Comes before all else. Without TLS there is nothing to do.
  virtual void handshake(Done done) = 0;
  /// One read, and one write, at a time. They end with some bytes, at least one.
  virtual void read_some(std::span<char> to, Done done) = 0;
  virtual void write_some(std::string_view from, Done done) = 0;
  /// Says that there is no more to come, behind what was written; reads go on.
  virtual void end_writing(Done done) = 0;
  /// Whether the peer has said so, or is gone: also where unread bytes stand before that.
  virtual bool peer_has_ended() = 0;
  /// Ends all operations: they fail.
  virtual void close() = 0;
};

/// Takes a connected socket. `tls`: null for a plain one. What it sends is given up when the peer's
/// system acknowledges nothing for `send_timeout`.
std::unique_ptr<ByteStream> open_byte_stream(TaskPool& pool, TlsContext* tls, FileDescriptor socket,
                                             std::chrono::milliseconds send_timeout);

}  // namespace zi
