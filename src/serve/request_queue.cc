#include "serve/request_queue.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace zi {
namespace {

/// How long the pass loop may wait for a request before the ranks say again what they are doing. A
/// signal to the server closes the queue, which ends the wait; one to another rank has this time.
constexpr std::chrono::milliseconds kMostQueueWait(2000);
constexpr double kLongestRetry = 60;  // seconds

}  // namespace

RequestQueue::Ticket RequestQueue::submit(std::vector<Prompt> prompts,
                                          std::shared_ptr<PendingAnswer> answer,
                                          std::size_t choices) {
  const std::size_t count = prompts.size() * choices;
  Ticket ticket = 0;
  {
    const std::scoped_lock lock(mutex_);
    if (closed_) throw ApiError::unavailable("the server is ending: it takes no more requests");
    if (count > most_waiting_) {
      throw ApiError(400,
                     fmt::format("the request has {} prompts and choices; the server takes up to "
                                 "{} at once (--max-queue)",
                                 count, most_waiting_),
                     {.code = "too_many_prompts"});
    }
    if (waiting_.size() + count > most_waiting_) {
      ApiError full(429,
                    fmt::format("{} prompts wait, and the queue has room for {}; try again later",
                                waiting_.size(), most_waiting_),
                    {.type = "rate_limit_error", .code = "queue_full"});
      throw full.retry_after(retry_after(waiting_.size() + count - most_waiting_));
    }
    ticket = next_;
    for (std::size_t i = 0; i < count; ++i) waiting_.push_back(next_++);
    open_.emplace(ticket, Open{.answer = std::move(answer),
                               .prompts = std::move(prompts),
                               .choices = choices,
                               .count = count,
                               .taken = std::vector<bool>(count),
                               .told = std::vector<std::optional<Clock::time_point>>(count),
                               .unfinished = count,
                               .arrived = Clock::now()});
  }
  changed_.notify_all();
  return ticket;
}

int RequestQueue::retry_after(std::size_t missing) const {
  const double seconds = std::ceil(seconds_a_prompt_ * static_cast<double>(missing));
  return static_cast<int>(std::clamp(seconds, 1.0, kLongestRetry));
}

void RequestQueue::cancel(Ticket ticket) {
  std::vector<AnswerThread::Task> dropped;
  {
    const std::scoped_lock lock(mutex_);
    const auto request = open_.find(ticket);
    if (request == open_.end()) return;
    // Its last owner must not be who says that the client left.
    dropped.push_back({request->second.answer});
    ++cancelled_requests_;
    drop(request);
  }
  answers_->post(dropped);
  changed_.notify_all();
}

void RequestQueue::drop(const Requests::iterator& request) {
  const auto& [first, open] = *request;
  const auto own = [first = first, count = open.count](std::uint64_t index) {
    return index >= first && index < first + count;
  };
  std::erase_if(waiting_, own);
  // Those that have ended are cancelled too, which nobody notices.
  for (std::size_t i = 0; i < open.count; ++i) {
    if (open.taken[i]) cancelled_.push_back(first + i);
  }
  open_.erase(request);
}

void RequestQueue::close() {
  {
    const std::scoped_lock lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
}

void RequestQueue::abandon(const ApiError& error) {
  std::vector<AnswerThread::Task> told;
  {
    const std::scoped_lock lock(mutex_);
    closed_ = true;
    while (!open_.empty()) {
      told.push_back(
          {open_.begin()->second.answer, [error](PendingAnswer& answer) { answer.failed(error); }});
      drop(open_.begin());
    }
  }
  answers_->post(told);
  changed_.notify_all();
}

std::size_t RequestQueue::waiting() const {
  const std::scoped_lock lock(mutex_);
  return waiting_.size();
}

std::size_t RequestQueue::open() const {
  const std::scoped_lock lock(mutex_);
  return open_.size();
}

std::uint64_t RequestQueue::cancelled_requests() const {
  const std::scoped_lock lock(mutex_);
  return cancelled_requests_;
}

RequestQueue::Requests::const_iterator RequestQueue::of(std::uint64_t index) const {
  auto request = open_.upper_bound(index);
  if (request == open_.begin()) return open_.end();
  --request;
  return index < request->first + request->second.count ? request : open_.end();
}

RequestQueue::Requests::iterator RequestQueue::of(std::uint64_t index) {
  const auto request = std::as_const(*this).of(index);
  // A range of nothing: erases nothing, and gives the place as one that may be changed.
  return open_.erase(request, request);
}

RequestQueue::Place RequestQueue::place(const Requests::const_iterator& request,
                                        std::uint64_t index) {
  const Open& open = request->second;
  const auto number = static_cast<std::size_t>(index - request->first);
  return {open.answer, number, open.arrived, open.told[number]};
}

RequestQueue::Place RequestQueue::find(std::uint64_t index) const {
  const std::scoped_lock lock(mutex_);
  const auto request = of(index);
  return request == open_.end() ? Place{} : place(request, index);
}

RequestQueue::Place RequestQueue::tell(std::uint64_t index) {
  const std::scoped_lock lock(mutex_);
  const auto request = of(index);
  if (request == open_.end()) return {};
  Place found = place(request, index);
  request->second.told[found.number] = Clock::now();
  return found;
}

RequestQueue::Place RequestQueue::finish(std::uint64_t index) {
  const std::scoped_lock lock(mutex_);
  const auto request = of(index);
  if (request == open_.end()) return {};
  Place found = place(request, index);
  if (--request->second.unfinished == 0) open_.erase(request);
  return found;
}

RequestQueue::Place RequestQueue::fail(std::uint64_t index) {
  const std::scoped_lock lock(mutex_);
  const auto request = of(index);
  if (request == open_.end()) return {};
  Place found = place(request, index);
  drop(request);
  return found;
}

Prompt RequestQueue::take_first() {
  const std::uint64_t index = waiting_.front();
  waiting_.pop_front();
  const auto request = of(index);
  Open& open = request->second;
  const auto number = static_cast<std::size_t>(index - request->first);
  open.taken[number] = true;
  Prompt& base = open.prompts[number / open.choices];
  const std::size_t choice = number % open.choices;
  Prompt prompt = choice + 1 == open.choices ? std::move(base) : base;
  prompt.index = index;
  prompt.own.draw_number = choice;
  return prompt;
}

std::vector<Prompt> RequestQueue::take(std::size_t most, bool wait) {
  if (wait) this->wait();
  const std::scoped_lock lock(mutex_);
  const std::size_t count = std::min(most, waiting_.size());
  std::vector<Prompt> prompts;
  prompts.reserve(count);
  for (std::size_t i = 0; i < count; ++i) prompts.push_back(take_first());
  if (count > 0) {
    const auto now = Clock::now();
    constexpr double kWeight = 0.1;  // of the newest in the mean
    if (last_take_) {
      const double seconds = std::chrono::duration<double>(now - *last_take_).count();
      seconds_a_prompt_ += kWeight * (seconds / static_cast<double>(count) - seconds_a_prompt_);
    }
    last_take_ = waiting_.empty() ? std::nullopt : std::optional(now);
  }
  return prompts;
}

bool RequestQueue::exhausted() {
  const std::scoped_lock lock(mutex_);
  return closed_ && waiting_.empty();
}

void RequestQueue::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, kMostQueueWait,
                    [this] { return closed_ || !waiting_.empty() || !cancelled_.empty(); });
}

std::vector<std::uint64_t> RequestQueue::cancelled() {
  const std::scoped_lock lock(mutex_);
  return std::exchange(cancelled_, {});
}

}  // namespace zi
