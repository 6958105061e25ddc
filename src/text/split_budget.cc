#include "text/split_budget.h"

#include <fmt/format.h>
#include <time.h>

#include "zero_infer/error.h"

namespace zi {
namespace {

using std::chrono::nanoseconds;

// Splitting takes about 0.3 us a byte, with merging, and ten times that under a sanitizer.
constexpr nanoseconds kAlways = std::chrono::seconds(1);
constexpr nanoseconds kPerByte = std::chrono::microseconds(5);
constexpr nanoseconds kBetweenLooks = std::chrono::milliseconds(1);

nanoseconds thread_time() {
  timespec time{};
  // Cannot fail: the clock is there, and the address is good.
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + nanoseconds(time.tv_nsec);
}

}  // namespace

SplitBudget SplitBudget::for_text(std::size_t bytes) {
  return {kAlways + static_cast<nanoseconds::rep>(bytes) * kPerByte, bytes};
}

SplitBudget::SplitBudget(nanoseconds most, std::size_t text_bytes)
    : most_(most),
      begin_(thread_time()),
      next_look_(std::chrono::steady_clock::now() + kBetweenLooks),
      text_bytes_(text_bytes) {}

void SplitBudget::look(std::chrono::steady_clock::time_point now) {
  next_look_ = now + kBetweenLooks;
  if (thread_time() - begin_ <= most_) return;
  throw PromptError(
      fmt::format("the tokenizer's patterns and added tokens need more than {:.1f} s of processor "
                  "time to split "
                  "this text of {} bytes; use the tokenizer.json that the model was published "
                  "with, or a shorter text",
                  std::chrono::duration<double>(most_).count(), text_bytes_));
}

}  // namespace zi
