#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "serve/answer_thread.h"
#include "text/prompt_source.h"

namespace zi {

/// The requests that are open: HTTP threads put their prompts in, the pass loop takes them, first
/// come, first served. Any thread may use it but for what PromptSource declares, which is the pass
/// loop's.
class RequestQueue final : public PromptSource {
 public:
  using Clock = std::chrono::steady_clock;
  /// Names a request for `cancel`: the index of its first prompt.
  using Ticket = std::uint64_t;

  /// Up to `most_waiting` prompts wait, each choice counted as one. `answers` outlives the queue.
  RequestQueue(std::size_t most_waiting, AnswerThread& answers)
      : most_waiting_(most_waiting), answers_(&answers) {}

  /// All prompts of a request, each as often as it has choices, or none: throws ApiError 429 where
  /// they would not have room, 400 where they never would, and 503 once the queue is closed. Choice
  /// c of prompt p is number p * choices + c of the answer; it draws as the prompt's settings say,
  /// with c as the number of the draw. A prompt's copies are made as they are taken.
  Ticket submit(std::vector<Prompt> prompts, std::shared_ptr<PendingAnswer> answer,
                std::size_t choices = 1);
  /// Nobody wants the answer any more. Prompts that wait are dropped, and the lanes of others are
  /// freed before the next pass. Does nothing for a request that has ended.
  void cancel(Ticket ticket);

  /// Takes no more requests: the source is exhausted once all that wait are taken.
  void close();
  /// Closes it, and tells every open request that it failed.
  void abandon(const ApiError& error);

  /// Prompts that wait for a lane.
  std::size_t waiting() const;
  /// Requests without their whole answer.
  std::size_t open() const;
  /// Requests whose clients left before they had their answers.
  std::uint64_t cancelled_requests() const;

  /// Who waits for a prompt; null where nobody does any more.
  struct Place {
    std::shared_ptr<PendingAnswer> answer;
    std::size_t number = 0;  // of the prompt in its request
    Clock::time_point arrived{};
    std::optional<Clock::time_point> told{};  // when it was last told of
  };
  Place find(std::uint64_t index) const;
  /// The same, and it is told of now: `told` is when that was before.
  Place tell(std::uint64_t index);
  /// The same, and the prompt has ended.
  Place finish(std::uint64_t index);
  /// The same, and its request ends with it: what is left of it is cancelled.
  Place fail(std::uint64_t index);

  std::vector<Prompt> take(std::size_t most, bool wait) override;
  bool exhausted() override;
  std::optional<std::uint64_t> total() const override { return std::nullopt; }
  void wait() override;
  std::vector<std::uint64_t> cancelled() override;

 private:
  struct Open {
    std::shared_ptr<PendingAnswer> answer;
    std::vector<Prompt> prompts;  // given away with its last choice
    std::size_t choices = 1;      // of each
    std::size_t count = 0;        // of all
    std::vector<bool> taken;
    std::vector<std::optional<Clock::time_point>> told;
    std::size_t unfinished = 0;
    Clock::time_point arrived{};
  };
  using Requests = std::map<Ticket, Open>;
  /// The request of a prompt; end() where it is not open.
  Requests::iterator of(std::uint64_t index);
  Requests::const_iterator of(std::uint64_t index) const;
  static Place place(const Requests::const_iterator& request, std::uint64_t index);
  /// Drops its waiting prompts, and cancels the others.
  void drop(const Requests::iterator& request);
  /// Takes the prompt that has waited for longest.
  Prompt take_first();
  /// Seconds until so many more prompts may have room.
  int retry_after(std::size_t missing) const;

  const std::size_t most_waiting_;
  AnswerThread* answers_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::uint64_t> waiting_;  // indices
  Requests open_;
  std::vector<std::uint64_t> cancelled_;
  std::uint64_t next_ = 0;
  std::uint64_t cancelled_requests_ = 0;
  bool closed_ = false;
  std::optional<Clock::time_point> last_take_;
  double seconds_a_prompt_ = 0;  // between prompts that are taken from a queue that waits
};

}  // namespace zi
