#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <span>
#include <utility>

#include "tests/forwarding_device.h"

namespace zi {

/// A device that gives memory back to the system just before it takes as much for a load: the pages
/// of a reserve that was taken before. A virtual machine's host may take free memory away within
/// seconds and return it more slowly than a disk reads; a load's own work on its pages stays as it
/// is.
class ReserveDevice final : public test::ForwardingDevice {
 public:
  /// Takes `reserve` bytes now.
  ReserveDevice(std::unique_ptr<Device> device, std::size_t reserve)
      : ForwardingDevice(std::move(device)), piece_count_(reserve / kPieceBytes) {
    pieces_ = std::make_unique<Buffer[]>(piece_count_);
    for (std::size_t i = 0; i < piece_count_; ++i) pieces_[i] = allocate(kPieceBytes);
  }

  void take_pages(std::span<std::byte> part) override {
    give_back(part.size());
    ForwardingDevice::take_pages(part);
  }
  Buffer allocate_pinned_or_plain(std::size_t bytes) override {
    give_back(bytes);
    return ForwardingDevice::allocate_pinned_or_plain(bytes);
  }

  MemoryInfo memory() const override { return with_reserve(ForwardingDevice::memory()); }
  MemoryInfo host_memory() const override { return with_reserve(ForwardingDevice::host_memory()); }

 private:
  static constexpr std::size_t kPieceBytes = std::size_t{32} << 20;

  void give_back(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    for (owed_ += bytes; owed_ >= kPieceBytes && given_ < piece_count_; owed_ -= kPieceBytes) {
      pieces_[given_++] = Buffer();
    }
  }
  MemoryInfo with_reserve(MemoryInfo info) const {
    const std::lock_guard lock(mutex_);
    info.free_bytes += (piece_count_ - given_) * kPieceBytes;
    return info;
  }

  std::size_t piece_count_;
  std::unique_ptr<Buffer[]> pieces_;
  mutable std::mutex mutex_;  // guards the next two, and the pieces
  std::size_t given_ = 0;     // pieces
  std::size_t owed_ = 0;      // bytes that were asked for since the last piece
};

}  // namespace zi
