#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace zi {

/// Bytes that came and are not used yet: at most kMost of them, in one piece.
class ReadBuffer {
 public:
  static constexpr std::size_t kMost = std::size_t{32} << 10;

  std::string_view bytes() const { return {data_.data() + begin_, end_ - begin_}; }
  bool full() const { return end_ - begin_ == kMost; }

  /// Where further bytes go; not while full. Moves what is there.
  std::span<char> room() {
    if (begin_ > 0) {
      std::memmove(data_.data(), data_.data() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
    }
    if (end_ == data_.size()) data_.resize(std::clamp(2 * data_.size(), kLeast, kMost));
    return std::span(data_).subspan(end_);
  }
  /// The first `count` bytes of that room have come.
  void added(std::size_t count) { end_ += count; }
  /// The first `count` bytes are used up. The room stays where it is: a read may be going on there.
  void consume(std::size_t count) { begin_ += count; }

 private:
  static constexpr std::size_t kLeast = std::size_t{2} << 10;

  std::vector<char> data_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

}  // namespace zi
