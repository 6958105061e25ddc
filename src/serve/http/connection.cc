#include "serve/http/connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "serve/http/error_response.h"
#include "serve/http/handler_call.h"
#include "serve/http/options_response.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr std::size_t kLeastBodyBytesPerSecond = std::size_t{64} << 10;
/// How long and how much is read behind the last answer. A socket that is closed with unread bytes
/// resets the connection, which may destroy the answer on its way (RFC 9112, 9.6).
constexpr seconds kLinger(2);
constexpr std::size_t kMostIgnoredBytes = std::size_t{1} << 20;
/// Of an OPTIONS request, which nobody reads.
constexpr std::size_t kMostUnreadBody = std::size_t{64} << 10;

RequestError too_long(std::size_t most) {
  return {413, fmt::format("the body is longer than {} bytes", most)};
}

RequestError too_many_bodies() {
  return {503, "the server is reading too many long requests; try again later"};
}

}  // namespace

Connection::Connection(ConnectionHost& host, std::unique_ptr<ByteStream> stream)
    : host_(host), stream_(std::move(stream)) {}

void Connection::start() {
  stream_->post(guarded([this] {
    if (host_.draining) return drop("");
    deadline_ = steady_clock::now() + host_.options.header_timeout;
    stream_->handshake(guarded([this](Outcome outcome, std::size_t) {
      if (phase_ != Phase::kHandshake) return;
      if (outcome != Outcome::kDone) return drop("the TLS handshake failed");
      await_request(host_.options.header_timeout);
      read();
    }));
    set_timer();
  }));
}

void Connection::refuse(HttpResponse response) {
  stream_->post(guarded([this, response = std::move(response)] {
    begin_answer();
    answer_->close_behind();
    answer_->send(response);
    read();
  }));
}

void Connection::drain() {
  stream_->post(guarded([this] {
    if (phase_ == Phase::kHandshake) return drop("");
    if (phase_ == Phase::kReading && reader_->stage() == RequestReader::Stage::kNothing) end();
    if (answer_ != nullptr) answer_->close_behind();
  }));
}

void Connection::abandon(HttpResponse response) {
  drain();
  stream_->post(guarded([this, response = std::move(response)] {
    if (phase_ == Phase::kReading) begin_answer();
    if (phase_ != Phase::kAnswering) return;
    answer_->close_behind();
    answer_->send(response);
  }));
}

void Connection::close() {
  stream_->post(guarded([this] { drop(""); }));
}

// Reading.

void Connection::await_request(milliseconds timeout) {
  phase_ = Phase::kReading;
  reader_ = std::make_unique<RequestReader>(host_.options.max_body);
  deadline_ = steady_clock::now() + timeout;
  set_timer();
}

void Connection::read() {
  if (reading_ || peer_ended_ || phase_ == Phase::kClosed || buffer_.full()) return;
  reading_ = true;
  stream_->read_some(buffer_.room(), guarded([this](Outcome outcome, std::size_t bytes) {
                       reading_ = false;
                       on_read(outcome, bytes);
                     }));
}

void Connection::on_read(Outcome outcome, std::size_t bytes) {
  if (phase_ == Phase::kClosed) return;
  if (outcome == Outcome::kFailed) return drop("the connection was reset");
  if (outcome == Outcome::kEnded) return on_peer_ended();
  buffer_.added(bytes);
  if (phase_ == Phase::kReading) {
    parse();
  } else if (phase_ == Phase::kEnding) {
    buffer_.consume(buffer_.bytes().size());
    ignored_bytes_ += bytes;
    if (ignored_bytes_ > kMostIgnoredBytes)
      return drop("it goes on sending behind its last answer");
  }
  read();
  set_timer();
}

void Connection::on_peer_ended() {
  peer_ended_ = true;
  if (phase_ == Phase::kAnswering) {
    answer_->leave();
  } else {
    const bool in_request =
        phase_ == Phase::kReading && reader_->stage() != RequestReader::Stage::kNothing;
    drop(in_request ? "it was closed in the middle of a request" : "");
  }
}

void Connection::parse() {
  try {
    take_in();
  } catch (const RequestError& error) {
    answer_error(error);
  }
}

void Connection::take_in() {
  using Stage = RequestReader::Stage;
  while (phase_ == Phase::kReading && !buffer_.bytes().empty()) {
    const Stage before = reader_->stage();
    const std::size_t used = reader_->take(buffer_.bytes());
    buffer_.consume(used);
    const Stage stage = reader_->stage();
    if (before == Stage::kNothing && stage != Stage::kNothing) {
      deadline_ = steady_clock::now() + host_.options.header_timeout;
    }
    if (before < Stage::kBody && stage >= Stage::kBody) on_head();
    if (phase_ != Phase::kReading) return;  // refused by its head
    if (body_share_ != nullptr) on_body();
    if (stage == Stage::kWhole) return on_request();
    if (used == 0) {
      if (!buffer_.full()) return;
      throw RequestError(stage == Stage::kBody ? 400 : 431,
                         fmt::format("a part of the request that must come in one piece is longer "
                                     "than {} bytes",
                                     ReadBuffer::kMost));
    }
  }
}

void Connection::on_head() {
  ++host_.open_requests;
  counted_ = true;
  admission_ = HttpAdmission();
  if (reader_->request().method == "OPTIONS") {
    admission_.max_body = kMostUnreadBody;
  } else if (host_.admit != nullptr) {
    admission_ = host_.admit(reader_->request());
  }
  const bool whole = reader_->stage() == RequestReader::Stage::kWhole;
  if (admission_.refusal) {
    begin_answer();
    if (!whole) answer_->close_behind();
    answer_->send(std::move(*admission_.refusal));
    return;
  }
  if (whole) return;
  const RequestReader::Head& head = reader_->head();
  if (head.content_length > admission_.max_body) throw too_long(admission_.max_body);
  if (head.content_length && !host_.bodies.has(*head.content_length)) throw too_many_bodies();
  body_began_ = steady_clock::now();
  body_share_ = std::make_shared<BodyBudget::Share>(host_.bodies);
  if (head.expects_continue && buffer_.bytes().empty()) {
    out_ = "HTTP/1.1 100 Continue\r\n\r\n";  // behind the answer before it, which was sent whole
    out_is_answer_ = false;
    send();
  }
}

/// Some more of the body has come.
void Connection::on_body() {
  const std::size_t bytes = reader_->body_bytes();
  if (bytes > admission_.max_body) throw too_long(admission_.max_body);
  if (!body_share_->grow_to(bytes)) throw too_many_bodies();
  const TimePoint latest =
      body_began_ + host_.options.body_timeout + seconds(bytes / kLeastBodyBytesPerSecond);
  deadline_ = std::min(latest, steady_clock::now() + host_.options.body_timeout);
}

void Connection::on_request() {
  HttpRequest request = reader_->finish();
  request.peer = stream_->peer();
  begin_answer();
  reader_.reset();
  if (request.method == "OPTIONS") {
    answer_->send(options_response(request, !host_.options.cors_origin.empty()));
    return;
  }
  TaskPool& threads = admission_.quick ? host_.quick_workers : host_.workers;
  threads.post([&handler = host_.handler, request = std::move(request), answer = answer_,
                reply = reply_to(answer_), share = std::move(body_share_)]() mutable {
    call_handler(handler, request, *answer, reply);
  });
}

// Answering.

void Connection::begin_answer() {
  ResponseTerms terms;
  terms.cors_origin = host_.options.cors_origin;
  if (reader_ != nullptr) {
    const RequestReader::Head& head = reader_->head();
    terms.http_1_0 = head.http_1_0;
    terms.head_only = head.head_only;
    terms.keep_alive = head.keep_alive && !host_.draining;
  }
  // Called while the answer is attached, and so while this connection is there.
  auto wake = [this] { stream_->post(guarded([this] { send(); })); };
  answer_ = std::make_shared<Answer>(std::move(terms), host_.options.max_unsent, host_.io,
                                     std::move(wake));
  phase_ = Phase::kAnswering;
  look_time_ = steady_clock::now() + kLookInterval;
  fill_time_ = TimePoint::max();
  if (peer_ended_) answer_->leave();
}

void Connection::answer_error(const RequestError& error) {
  log_verbose(fmt::format("HTTP server: {}: {} {}", stream_->peer(), error.status(), error.what()));
  begin_answer();
  answer_->close_behind();
  answer_->send(error_response(error.status(), error.what()));
}

void Connection::send() {
  if (phase_ == Phase::kClosed) return;
  if (answer_ != nullptr && answer_->overflowed()) return drop("it does not read its stream");
  if (sending_) return;
  if (out_sent_ == out_.size()) {
    if (answer_ == nullptr) return;
    Answer::Portion portion = answer_->take();
    out_ = std::move(portion.bytes);
    out_sent_ = 0;
    out_is_answer_ = true;
    if (out_.empty()) {
      if (portion.end == Answer::End::kWhole) return on_answered(portion.keep_alive);
      if (portion.end == Answer::End::kCutOff) return drop("its answer was cut off");
      if (portion.fills) fill_time_ = steady_clock::now() + host_.options.filler_interval;
      return set_timer();
    }
  }
  sending_ = true;
  send_deadline_ = steady_clock::now() + host_.options.send_timeout;
  stream_->write_some(std::string_view(out_).substr(out_sent_),
                      guarded([this](Outcome outcome, std::size_t bytes) {
                        sending_ = false;
                        on_sent(outcome, bytes);
                      }));
  set_timer();
}

void Connection::on_sent(Outcome outcome, std::size_t bytes) {
  if (phase_ == Phase::kClosed) return;
  if (outcome != Outcome::kDone) return drop("it was closed before its answer was sent");
  out_sent_ += bytes;
  if (out_is_answer_) answer_->sent(bytes);
  send();
}

void Connection::on_answered(bool keep_alive) {
  forget_request();
  std::string().swap(out_);  // and the memory of a long one
  out_sent_ = 0;
  if (!keep_alive || host_.draining) return end();
  await_request(host_.options.idle_timeout);
  parse();  // what came meanwhile
  if (peer_ended_ && phase_ == Phase::kReading) return drop("");
  read();
}

// Ending.

void Connection::end() {
  if (peer_ended_) return drop("");
  phase_ = Phase::kEnding;
  deadline_ = steady_clock::now() + kLinger;
  buffer_.consume(buffer_.bytes().size());
  stream_->end_writing(guarded([](Outcome, std::size_t) {}));  // reads tell how it went
  read();
  set_timer();
}

void Connection::drop(std::string_view reason) {
  if (phase_ == Phase::kClosed) return;
  if (!reason.empty()) {
    log_verbose(fmt::format("HTTP server: connection of {}: {}", stream_->peer(), reason));
  }
  phase_ = Phase::kClosed;
  stream_->close();
  forget_request();
  host_.closed(this);
}

void Connection::fail(const std::exception& error) {
  log_error(fmt::format("HTTP server: connection of {}: {}", stream_->peer(), error.what()));
  drop("");
}

void Connection::forget_request() {
  if (answer_ != nullptr) {
    answer_->leave();  // nothing where it has ended
    answer_->detach();
    answer_.reset();
  }
  reader_.reset();
  body_share_.reset();
  if (std::exchange(counted_, false)) --host_.open_requests;
}

}  // namespace zi
