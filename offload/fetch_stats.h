#pragma once

#include <cstddef>

#include "base/link.h"

namespace zi {

/// What moved since the last `LayerFetcher::take_stats`.
struct FetchStats {
  std::size_t passes = 0;
  std::size_t staying = 0;  // of them
  /// - read: storage -> staging;
  /// - copy: host or staging -> slot, this rank's shards;
  /// - gather: received from the other ranks;
  /// - network: not counted here, see PassRunner.
  PerLink<std::size_t> bytes;
  std::size_t host_bytes = 0;  // multiplied by the host's cores where they rest, in use of units
  /// The time of gathers, from events. Complete if the caller waits for the device between passes;
  /// else trips whose events are reused before they end are left out.
  double gather_seconds = 0;

  FetchStats& operator+=(const FetchStats& other) {
    passes += other.passes;
    staying += other.staying;
    bytes += other.bytes;
    host_bytes += other.host_bytes;
    gather_seconds += other.gather_seconds;
    return *this;
  }
};

}  // namespace zi
