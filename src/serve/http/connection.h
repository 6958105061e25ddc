#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "serve/http/answer.h"
#include "serve/http/body_budget.h"
#include "serve/http/byte_stream.h"
#include "serve/http/http_options.h"
#include "serve/http/http_reply.h"
#include "serve/http/read_buffer.h"
#include "serve/http/request_error.h"
#include "serve/http/request_reader.h"
#include "serve/http/task_pool.h"

namespace zi {

class Connection;

/// What the connections of a server share. Outlives them.
struct ConnectionHost {
  const HttpOptions& options;
  const HttpHandler& handler;
  const HttpAdmit& admit;
  std::shared_ptr<TaskPool> io;
  TaskPool& workers;
  TaskPool& quick_workers;
  BodyBudget& bodies;
  std::atomic<int>& open_requests;
  const std::atomic<bool>& draining;        // connections close behind the request that they are at
  std::function<void(Connection*)> closed;  // called once by each
};

/// One client: reads a request, sends its answer, and so on. It also reads while an answer is being
/// made, so that it sees a client that leaves; what comes then waits for its turn. All functions
/// but the public ones run on the strand of the stream.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(ConnectionHost& host, std::unique_ptr<ByteStream> stream);

  // Any thread; each returns at once.
  void start();
  /// Instead of `start`: answers without having read anything, and closes.
  void refuse(HttpResponse response);
  /// Closes it now, or behind the request that it is at.
  void drain();
  /// The same, and a request without an answer gets this one.
  void abandon(HttpResponse response);
  void close();

 private:
  using TimePoint = ByteStream::TimePoint;
  using Outcome = ByteStream::Outcome;
  enum class Phase {
    kHandshake,
    kReading,    // a request, or the wait for one
    kAnswering,  // from its end, or what is wrong with it, to the last byte of the answer
    kEnding,     // the last answer has been sent
    kClosed,
  };

  // Reading.
  void await_request(std::chrono::milliseconds timeout);
  void read();
  void on_read(Outcome outcome, std::size_t bytes);
  void on_peer_ended();
  void parse();
  void take_in();
  void on_head();
  void on_body();
  void on_request();

  // Answering.
  void begin_answer();
  void answer_error(const RequestError& error);
  void send();
  void on_sent(Outcome outcome, std::size_t bytes);
  void on_answered(bool keep_alive);

  // Ending.
  void end();
  void drop(std::string_view reason);
  void forget_request();

  // Time.
  TimePoint deadline() const;
  void set_timer();
  void on_timer();
  void on_answer_timer(TimePoint now);
  static constexpr std::chrono::seconds kLookInterval{1};

  /// `task` as a callback of the stream: keeps this connection alive, and drops it when `task`
  /// throws (no memory, say).
  template <typename Task>
  auto guarded(Task task) {
    return [self = shared_from_this(), task = std::move(task)](auto... arguments) {
      try {
        task(arguments...);
      } catch (const std::exception& error) {
        self->fail(error);
      }
    };
  }
  void fail(const std::exception& error);

  ConnectionHost& host_;
  const std::unique_ptr<ByteStream> stream_;
  Phase phase_ = Phase::kHandshake;
  TimePoint deadline_{};                // of all phases but kAnswering
  TimePoint send_deadline_{};           // while sending_
  TimePoint look_time_{};               // while the buffer is full in kAnswering
  TimePoint fill_time_{};               // while a stream is silent
  TimePoint timer_ = TimePoint::max();  // what the stream's timer is set to

  ReadBuffer buffer_;
  bool reading_ = false;
  bool peer_ended_ = false;
  std::size_t ignored_bytes_ = 0;  // in kEnding

  std::unique_ptr<RequestReader> reader_;  // in kReading
  HttpAdmission admission_;                // of its request
  std::shared_ptr<BodyBudget::Share> body_share_;
  TimePoint body_began_{};
  bool counted_ = false;  // in open_requests

  std::shared_ptr<Answer> answer_;
  std::string out_;           // on its way
  std::size_t out_sent_ = 0;  // of it
  bool out_is_answer_ = false;
  bool sending_ = false;
};

}  // namespace zi
