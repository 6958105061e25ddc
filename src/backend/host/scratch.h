#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "zero_infer/bytes.h"

namespace zi {

/// Aligned, zeroed host memory that grows and never shrinks; what was in it is then lost.
class Scratch {
 public:
  void reserve(std::size_t bytes) {
    if (bytes <= bytes_) return;
    bytes = align_up(bytes, kPageBytes);
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, bytes)));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes);
    bytes_ = bytes;
  }
  std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t bytes_ = 0;
};

}  // namespace zi
