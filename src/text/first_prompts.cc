#include "text/first_prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <utility>

#include "zero_infer/error.h"

namespace zi {
namespace {

class WithFirst final : public PromptSource {
 public:
  WithFirst(std::deque<Prompt> first, std::unique_ptr<PromptSource> rest)
      : first_(std::move(first)), rest_(std::move(rest)) {}

  std::vector<Prompt> take(std::size_t most, bool wait) override {
    if (first_.empty()) return rest_->take(most, wait);
    std::vector<Prompt> prompts;
    while (!first_.empty() && prompts.size() < most) {
      prompts.push_back(std::move(first_.front()));
      first_.pop_front();
    }
    return prompts;
  }
  bool exhausted() override { return first_.empty() && rest_->exhausted(); }
  std::optional<std::uint64_t> total() const override { return rest_->total(); }
  void wait() override {
    if (first_.empty()) rest_->wait();
  }
  std::vector<std::uint64_t> cancelled() override { return rest_->cancelled(); }

 private:
  std::deque<Prompt> first_;
  std::unique_ptr<PromptSource> rest_;
};

}  // namespace

std::unique_ptr<PromptSource> check_first_prompts(std::unique_ptr<PromptSource> source,
                                                  std::size_t most,
                                                  const std::function<void(Prompt&)>& check,
                                                  const PromptErrorCallback& on_error) {
  std::deque<Prompt> first;
  std::size_t bytes = 0;
  for (std::size_t tried = 0; tried < most && bytes < kMostKeptBytes && !source->exhausted();) {
    for (Prompt& prompt : source->take(1, true)) {
      ++tried;
      bytes += prompt.given_bytes();
      try {
        check(prompt);
        first.push_back(std::move(prompt));
      } catch (const PromptError& error) {
        on_error(fmt::format("{}: {}", prompt.where, error.what()));
      }
    }
  }
  return std::make_unique<WithFirst>(std::move(first), std::move(source));
}

}  // namespace zi
