#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/link.h"
#include "engine/row_exchange.h"
#include "offload/unit_times.h"

namespace zi {

/// When the parts of one pass ran on one rank, by events of the device, on the host's clock.
struct PassTimes {
  std::uint64_t pass = 0;  // of the job, from 0
  std::int64_t rows = 0;   // tokens
  bool stays = false;      // weights did, and activations travelled
  Exchanged exchanged;     // by this rank, for the head as well
  /// From other hosts, by this rank, since the pass before it ended: gathers for it and for the
  /// next one.
  std::uint64_t network_bytes = 0;
  Interval host;   // the host was in it, the wait at its end included
  Interval embed;  // embedding rows looked up, exchanged and normed, up to the first block
  std::vector<UnitTimes> units;
  Interval graph;  // instead of units: all blocks and the logits in one replayed graph
  Interval head;   // after the blocks: logits, their exchange, samples
};

using PassObserver = std::function<void(const PassTimes&)>;

/// Where the compute stream's time went, in seconds, and how long each link was busy meanwhile.
struct PassSplit {
  double compute = 0;  // with the exchanges of products whose weights stay
  /// For a unit:
  /// - read: that the host had not yet taken from storage;
  /// - copy: that was still being copied, or whose copy was still queued;
  /// - gather: that was still being gathered.
  PerLink<double> waited;
  PerLink<double> busy;  // of copies and gathers; not known of storage

  PassSplit& operator+=(const PassSplit& other);
  PassSplit& operator*=(double factor);
};

PassSplit split_of(const PassTimes& times);

}  // namespace zi
