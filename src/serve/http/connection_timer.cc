// The deadlines of a connection, which one timer watches.

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "serve/http/connection.h"

namespace zi {
namespace {

using std::chrono::steady_clock;

template <typename Duration>
std::string in_seconds(Duration time) {
  return fmt::format("{:.3g} s", std::chrono::duration<double>(time).count());
}

}  // namespace

Connection::TimePoint Connection::deadline() const {
  if (phase_ == Phase::kClosed) return TimePoint::max();
  if (phase_ != Phase::kAnswering) return deadline_;
  return std::min(sending_ ? send_deadline_ : fill_time_,
                  buffer_.full() && !peer_ended_ ? look_time_ : TimePoint::max());
}

/// The timer may wake too early, and is then set again: so it need not be set for each deadline
/// that comes closer and goes away again.
void Connection::set_timer() {
  const TimePoint time = deadline();
  if (time >= timer_) return;
  timer_ = time;
  stream_->wake_at(time, guarded([this] {
                     timer_ = TimePoint::max();
                     on_timer();
                   }));
}

void Connection::on_timer() {
  const TimePoint now = steady_clock::now();
  if (now >= deadline()) {
    switch (phase_) {
      case Phase::kHandshake:
        drop("no TLS handshake came");
        break;
      case Phase::kReading:
        if (reader_->stage() == RequestReader::Stage::kNothing) {
          end();
        } else {
          answer_error(RequestError(408, "the request did not come in time"));
        }
        break;
      case Phase::kAnswering:
        on_answer_timer(now);
        break;
      case Phase::kEnding:
        drop("");
        break;
      case Phase::kClosed:
        break;
    }
  }
  set_timer();
}

void Connection::on_answer_timer(TimePoint now) {
  if (sending_ && now >= send_deadline_) {
    return drop(fmt::format("it took nothing for {}", in_seconds(host_.options.send_timeout)));
  }
  if (!sending_ && now >= fill_time_) {
    fill_time_ = TimePoint::max();  // until the filler is sent
    answer_->fill();
  }
  if (!buffer_.full() || peer_ended_ || now < look_time_) return;
  if (stream_->peer_has_ended()) return on_peer_ended();
  look_time_ = now + kLookInterval;
}

}  // namespace zi
