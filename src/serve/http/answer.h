#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "serve/http/http_reply.h"
#include "serve/http/response_head.h"
#include "serve/http/task_pool.h"

namespace zi {

/// The bytes of one answer on their way from whoever answers to the connection, and the news that
/// the client has left on the way back. Any thread; nothing is called under its lock but `wake`.
class Answer {
 public:
  /// `pool` runs `on_left`'s callbacks. `wake` tells the connection that `take` has something new;
  /// it only posts, and is not called after `detach`.
  Answer(ResponseTerms terms, std::size_t max_unsent, std::shared_ptr<TaskPool> pool,
         std::function<void()> wake);

  // For whoever answers: as those of HttpReply.
  void send(HttpResponse response);
  void begin_stream(HttpResponse head);
  void write(std::string_view bytes);
  void end();
  void on_left(std::function<void()> left);
  bool left() const;
  /// Its handler failed: a 500 where nothing was sent yet, else it is cut off. Others that work for
  /// it are told that the client has left.
  void fail();
  /// Nobody will end it: as `fail`, with a line in the log; cut off without a word where the client
  /// has left.
  void abandon();

  // For the connection.
  enum class End { kNotYet, kWhole, kCutOff };
  struct Portion {
    std::string bytes;
    End end = End::kNotYet;  // what comes behind `bytes`
    bool keep_alive = false;
    bool fills = false;  // a stream that `fill` keeps alive
  };
  /// What was not taken yet.
  Portion take();
  /// More than `max_unsent` was left unsent: there is nothing to wait for.
  bool overflowed() const;
  /// Of the bytes that were taken, `count` are on their way.
  void sent(std::size_t count);
  /// Nothing was written for long: writes the filler, if there is one and nothing is on its way.
  void fill();
  /// The connection closes behind this answer; said to the client if its head is not made yet.
  void close_behind();
  /// The client has left; what comes may still reach it.
  void leave();
  /// Nobody takes any more.
  void detach();

 private:
  enum class State { kWaiting, kStreaming, kEnded };
  class Hold;

  // Under the lock.
  bool refuse_head(const HttpResponse& response);
  void put_whole(const HttpResponse& response);
  void put(std::string_view bytes);
  void finish_with(End end);
  void give_up();
  void woken();
  /// Marks the client as gone, and posts the callback.
  void mark_left();

  const std::size_t max_unsent_;
  const std::shared_ptr<TaskPool> pool_;

  mutable std::mutex mutex_;
  ResponseTerms terms_;
  std::function<void()> wake_;
  bool wake_is_due_ = false;  // until the next `take`
  State state_ = State::kWaiting;
  End end_ = End::kNotYet;
  std::string pending_;     // not taken
  std::size_t unsent_ = 0;  // of all bytes, pending ones too
  bool overflowed_ = false;
  bool left_ = false;
  bool has_body_ = true;  // of a stream
  std::string filler_;    // of a stream
  std::function<void()> on_left_;
  std::function<void()> dropped_;  // a callback that is not needed any more
};

/// What a handler gets for it: abandons the answer when it is destroyed.
std::shared_ptr<HttpReply> reply_to(std::shared_ptr<Answer> answer);

}  // namespace zi
