#include "text/encoded_prompts.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <iterator>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/blocked_signals.h"

namespace zi {
namespace {

class EncodedPrompts final : public PromptSource {
 public:
  EncodedPrompts(PromptSource& source, PromptEncoder encode, std::size_t most)
      : source_(&source), encode_(std::move(encode)), most_(most) {
    const BlockedSignals blocked;
    encoder_ = std::thread([this] { run_encoder(); });
  }

  ~EncodedPrompts() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_one();
    encoder_.join();
  }

  std::vector<Prompt> take(std::size_t most, bool wait) override {
    std::vector<Prompt> prompts = take_kept(most);
    if (prompts.size() < most) {
      std::vector<Prompt> more = from_source(most - prompts.size(), wait && prompts.empty());
      prompts.insert(prompts.end(), std::move_iterator(more.begin()),
                     std::move_iterator(more.end()));
      if (prompts.empty() && failure_) std::rethrow_exception(failure_);
    }
    keep_more();
    return prompts;
  }

  bool exhausted() override { return !has_kept() && !failure_ && source_->exhausted(); }
  std::optional<std::uint64_t> total() const override { return source_->total(); }
  void wait() override {
    if (!has_kept() && !failure_) source_->wait();
  }

 private:
  bool has_kept() {
    const std::lock_guard lock(mutex_);
    return !kept_.empty();
  }

  std::vector<Prompt> take_kept(std::size_t most) {
    const std::lock_guard lock(mutex_);
    std::vector<Prompt> prompts;
    while (!kept_.empty() && prompts.size() < most) {
      kept_bytes_ -= kept_.front().given_bytes();
      prompts.push_back(std::move(kept_.front()));
      kept_.pop_front();
      ++first_;
    }
    return prompts;
  }

  /// None after a failure, which is kept until the prompts before it are taken.
  std::vector<Prompt> from_source(std::size_t most, bool wait) {
    if (failure_) return {};
    try {
      return source_->take(most, wait);
    } catch (...) {
      failure_ = std::current_exception();
      return {};
    }
  }

  void keep_more() {
    std::size_t room = 0;
    {
      const std::lock_guard lock(mutex_);
      if (kept_bytes_ < kMostKeptBytes) room = most_ - kept_.size();
    }
    if (room == 0) return;
    std::vector<Prompt> more = from_source(room, false);
    if (more.empty()) return;
    {
      const std::lock_guard lock(mutex_);
      for (Prompt& prompt : more) {
        kept_bytes_ += prompt.given_bytes();
        kept_.push_back(std::move(prompt));
      }
    }
    changed_.notify_one();
  }

  /// The encoder's thread.
  void run_encoder() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return stop_ || std::max(next_, first_) < first_ + kept_.size(); });
      if (stop_) return;
      const std::uint64_t number = std::max(next_, first_);
      next_ = number + 1;
      const Prompt& kept = kept_[number - first_];
      if (!kept.text || kept.text_ids) continue;
      const Prompt prompt = kept;  // a copy: it may be taken meanwhile
      lock.unlock();
      std::optional<std::vector<std::int32_t>> ids = encoded(prompt);
      lock.lock();
      if (number >= first_) kept_[number - first_].text_ids = std::move(ids);
    }
  }

  std::optional<std::vector<std::int32_t>> encoded(const Prompt& prompt) const {
    try {
      return encode_(prompt);
    } catch (...) {  // met again, and told, by the rank that needs the tokens
      return std::nullopt;
    }
  }

  // The caller's own.
  PromptSource* const source_;
  const PromptEncoder encode_;
  const std::size_t most_;
  std::exception_ptr failure_;  // of the source

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Prompt> kept_;
  std::size_t kept_bytes_ = 0;
  std::uint64_t first_ = 0;  // number of the first one kept
  std::uint64_t next_ = 0;   // the encoder's next one; below `first_` where it fell behind
  bool stop_ = false;
  std::thread encoder_;
};

}  // namespace

std::unique_ptr<PromptSource> encode_ahead(PromptSource& source, PromptEncoder encode,
                                           std::size_t most) {
  return std::make_unique<EncodedPrompts>(source, std::move(encode), most);
}

}  // namespace zi
