#include "serve/http/answer.h"

#include <fmt/format.h>

#include <utility>

#include "serve/http/error_response.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

constexpr const char* kInternalError = "internal error; the server's log says more";

class Reply : public HttpReply {
 public:
  explicit Reply(std::shared_ptr<Answer> answer) : answer_(std::move(answer)) {}
  ~Reply() override { answer_->abandon(); }
  Reply(const Reply&) = delete;
  Reply& operator=(const Reply&) = delete;

  void send(HttpResponse response) override { answer()->send(std::move(response)); }
  void begin_stream(HttpResponse head) override { answer()->begin_stream(std::move(head)); }
  void write(std::string_view bytes) override { answer()->write(bytes); }
  void end() override { answer()->end(); }
  void on_left(std::function<void()> left) override { answer()->on_left(std::move(left)); }
  bool left() const override { return answer_->left(); }

 private:
  /// Of its own for each call, which may end with the last owner of this reply.
  std::shared_ptr<Answer> answer() const { return answer_; }

  const std::shared_ptr<Answer> answer_;
};

}  // namespace

/// The lock. A callback that is dropped meanwhile is destroyed behind it: it may hold what holds
/// this answer's reply.
class Answer::Hold {
 public:
  explicit Hold(Answer& answer) : answer_(answer), lock_(answer.mutex_) {}
  ~Hold() { dropped_ = std::exchange(answer_.dropped_, nullptr); }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;

 private:
  Answer& answer_;
  std::function<void()> dropped_;
  const std::lock_guard<std::mutex> lock_;
};

Answer::Answer(ResponseTerms terms, std::size_t max_unsent, std::shared_ptr<TaskPool> pool,
               std::function<void()> wake)
    : max_unsent_(max_unsent),
      pool_(std::move(pool)),
      terms_(std::move(terms)),
      wake_(std::move(wake)) {}

void Answer::send(HttpResponse response) {
  const Hold hold(*this);
  if (state_ != State::kWaiting || refuse_head(response)) return;
  put_whole(response);
  finish_with(End::kWhole);
}

void Answer::begin_stream(HttpResponse head) {
  const Hold hold(*this);
  if (state_ != State::kWaiting || refuse_head(head)) return;
  has_body_ = !terms_.head_only && may_have_body(head.status);
  if (has_body_ && terms_.http_1_0) terms_.keep_alive = false;  // which is its end
  pending_ = response_head(head, terms_, std::nullopt);
  unsent_ = pending_.size();
  state_ = State::kStreaming;
  if (has_body_) filler_ = std::move(head.filler);
  woken();
}

void Answer::write(std::string_view bytes) {
  const Hold hold(*this);
  if (state_ != State::kStreaming || !has_body_ || bytes.empty()) return;
  if (unsent_ + bytes.size() > max_unsent_) {
    mark_left();
    overflowed_ = true;
    wake_is_due_ = false;  // the connection may wait for what does not go out, and take nothing
    finish_with(End::kCutOff);
    return;
  }
  put(bytes);
}

void Answer::end() {
  const Hold hold(*this);
  if (state_ != State::kStreaming) return;
  if (has_body_ && !terms_.http_1_0) {
    pending_ += kLastChunk;
    unsent_ += kLastChunk.size();
  }
  finish_with(End::kWhole);
}

void Answer::on_left(std::function<void()> left) {
  const Hold hold(*this);
  if (state_ == State::kEnded && !left_) return;
  dropped_ = std::exchange(on_left_, std::move(left));
  if (left_) mark_left();
}

bool Answer::left() const {
  const std::lock_guard lock(mutex_);
  return left_;
}

void Answer::fail() {
  const Hold hold(*this);
  if (state_ == State::kEnded) return;
  mark_left();
  give_up();
}

void Answer::abandon() {
  const Hold hold(*this);
  if (state_ == State::kEnded) return;
  if (left_) return finish_with(End::kCutOff);  // that is why
  log_error(state_ == State::kWaiting ? "HTTP server: a request was dropped without an answer"
                                      : "HTTP server: a stream was dropped before its end");
  give_up();
}

Answer::Portion Answer::take() {
  const std::lock_guard lock(mutex_);
  wake_is_due_ = false;
  const bool fills = state_ == State::kStreaming && !filler_.empty();
  return {std::exchange(pending_, {}), end_, terms_.keep_alive, fills};
}

bool Answer::overflowed() const {
  const std::lock_guard lock(mutex_);
  return overflowed_;
}

void Answer::sent(std::size_t count) {
  const std::lock_guard lock(mutex_);
  unsent_ -= count;
}

void Answer::fill() {
  const std::lock_guard lock(mutex_);
  if (state_ == State::kStreaming && unsent_ == 0 && !filler_.empty()) put(filler_);
}

void Answer::close_behind() {
  const std::lock_guard lock(mutex_);
  terms_.keep_alive = false;
}

void Answer::leave() {
  const Hold hold(*this);
  if (state_ != State::kEnded) mark_left();
}

void Answer::detach() {
  const Hold hold(*this);
  wake_ = nullptr;
  pending_ = {};
  finish_with(End::kCutOff);
}

bool Answer::refuse_head(const HttpResponse& response) {
  const std::string reason = unusable_head(response);
  if (reason.empty()) return false;
  log_error("HTTP server: an answer cannot be sent: " + reason);
  give_up();
  return true;
}

void Answer::put_whole(const HttpResponse& response) {
  pending_ = response_head(response, terms_, response.body.size());
  if (!terms_.head_only && may_have_body(response.status)) pending_ += response.body;
  unsent_ = pending_.size();
}

void Answer::put(std::string_view bytes) {
  const std::size_t before = pending_.size();
  if (terms_.http_1_0) {
    pending_ += bytes;
  } else {
    append_chunk(bytes, pending_);
  }
  unsent_ += pending_.size() - before;
  woken();
}

void Answer::give_up() {
  if (state_ == State::kWaiting) {
    put_whole(error_response(500, kInternalError));
    finish_with(End::kWhole);
  } else {
    finish_with(End::kCutOff);
  }
}

void Answer::finish_with(End end) {
  state_ = State::kEnded;
  end_ = end;
  if (on_left_ != nullptr) dropped_ = std::exchange(on_left_, nullptr);
  woken();
}

void Answer::woken() {
  if (wake_ == nullptr || wake_is_due_) return;
  wake_is_due_ = true;
  wake_();
}

void Answer::mark_left() {
  left_ = true;
  if (on_left_ == nullptr) return;
  if (pool_->ended()) {
    dropped_ = std::exchange(on_left_, nullptr);
  } else {
    pool_->post(std::exchange(on_left_, nullptr));
  }
}

std::shared_ptr<HttpReply> reply_to(std::shared_ptr<Answer> answer) {
  return std::make_shared<Reply>(std::move(answer));
}

}  // namespace zi
