#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace zi {

/// What bounds a pass: the links that a unit's weights travel over, and the memories and products
/// at their end. They all work at the same time, so the slowest one bounds the pass.
enum class Link : std::uint8_t {
  kGather,        // from the other ranks
  kNetwork,       // from other hosts, a part of what is gathered
  kCopy,          // from host memory to the device
  kRead,          // from storage to host memory
  kDeviceMemory,  // read and written
  kHostMemory,    // read and written
  kProducts,
};

/// All of them, in the order of tables.
inline constexpr std::array kLinks = {Link::kGather,  Link::kNetwork,      Link::kCopy,
                                      Link::kRead,    Link::kDeviceMemory, Link::kHostMemory,
                                      Link::kProducts};
/// Those that a unit's shards travel over, in the order of their way.
inline constexpr std::array kTravelLinks = {Link::kRead, Link::kCopy, Link::kGather};

/// For people and in plans: `gather`, `network`, `copy`, `nvme read`, `device memory`, `host
/// memory`, `products`.
std::string_view name_of(Link link);
/// In results of measurements and in traces: `gather`, `network`, `copy`, `read`, `device_memory`,
/// `host_memory`, `weights` (the products, which read them).
std::string_view key_of(Link link);

/// A value for each link, zero at first.
template <typename T>
class PerLink {
 public:
  constexpr T& operator[](Link link) { return values_[static_cast<std::size_t>(link)]; }
  constexpr const T& operator[](Link link) const { return values_[static_cast<std::size_t>(link)]; }

  PerLink& operator+=(const PerLink& other) {
    for (const Link link : kLinks) (*this)[link] += other[link];
    return *this;
  }
  PerLink& operator*=(T factor) {
    for (T& value : values_) value *= factor;
    return *this;
  }
  T sum() const {
    T all{};
    for (const T& value : values_) all += value;
    return all;
  }

 private:
  std::array<T, kLinks.size()> values_{};
};

}  // namespace zi
