#pragma once

#include <chrono>
#include <cstddef>

namespace zi {

/// What it may cost to cut one text into tokens, all of its searches together. Counted in processor
/// time of the calling thread, so that a busy machine refuses no text. A tokenizer's patterns come
/// with the model: a hostile one must end with an error, and not after hours.
class SplitBudget {
 public:
  /// Many times what any known tokenizer needs for as many bytes.
  static SplitBudget for_text(std::size_t bytes);
  SplitBudget(std::chrono::nanoseconds most, std::size_t text_bytes);

  /// Throws PromptError once the time is spent. Cheap enough for every search.
  void check() {
    const auto now = std::chrono::steady_clock::now();
    if (now >= next_look_) look(now);
  }

 private:
  void look(std::chrono::steady_clock::time_point now);

  std::chrono::nanoseconds most_;
  std::chrono::nanoseconds begin_;
  std::chrono::steady_clock::time_point next_look_;
  std::size_t text_bytes_;
};

}  // namespace zi
