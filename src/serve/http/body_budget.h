#pragma once

#include <cstddef>
#include <mutex>

namespace zi {

/// Memory that the bodies of all requests may take together. It is taken as they come: a body that
/// is only announced keeps no other one out. Any thread.
class BodyBudget {
 public:
  explicit BodyBudget(std::size_t most) : left_(most) {}

  /// Whether so much is left at the moment.
  bool has(std::size_t bytes) const {
    const std::lock_guard lock(mutex_);
    return bytes <= left_;
  }

  /// What one request takes of it, given back at the end.
  class Share {
   public:
    explicit Share(BodyBudget& budget) : budget_(&budget) {}
    ~Share() { budget_->give_back(bytes_); }
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

    /// Makes it `bytes` at least; false where that is not left.
    bool grow_to(std::size_t bytes) {
      if (bytes <= bytes_) return true;
      if (!budget_->take(bytes - bytes_)) return false;
      bytes_ = bytes;
      return true;
    }

   private:
    BodyBudget* budget_;
    std::size_t bytes_ = 0;
  };

 private:
  bool take(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (bytes > left_) return false;
    left_ -= bytes;
    return true;
  }
  void give_back(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    left_ += bytes;
  }

  mutable std::mutex mutex_;
  std::size_t left_;
};

}  // namespace zi
