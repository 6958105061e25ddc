#pragma once

#include "base/link.h"
#include "offload/device_clock.h"
#include "offload/shard_store.h"

namespace zi {

/// One unit's way through one pass, on one rank. What did not happen has no length: only units on
/// storage are read, and a unit that is used where it rests does not travel.
struct UnitTimes {
  int unit = 0;
  Tier tier = Tier::kDevice;
  /// - read: storage -> staging, from its first read until the host had its last byte;
  /// - copy: into the slot;
  /// - gather: from the other ranks.
  PerLink<Interval> moved;
  Interval wait;     // the compute stream only waited for the unit
  Interval compute;  // what the body enqueued
};

}  // namespace zi
