#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace zi {

/// What attention needs besides its operands; one launch at a time, in the stream's order.
struct AttentionMemory {
  std::span<std::byte> scratch;  // of the device, at least kAttentionScratchBytes
  /// Of the device, kAttentionArrivals of them: zeros before the first call, and after each.
  std::uint32_t* arrivals = nullptr;
};

inline constexpr std::size_t kAttentionScratchBytes = std::size_t{32} << 20;
inline constexpr std::size_t kAttentionArrivals = 4096;

}  // namespace zi
