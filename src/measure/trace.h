#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/link.h"
#include "base/output_file.h"
#include "engine/pass_times.h"
#include "zero_infer/world.h"

namespace zi {

/// Collects when this rank's units were read, copied, gathered and computed, and writes all ranks'
/// as one Chrome trace (the `Trace Event Format`, which Perfetto and chrome://tracing show): a
/// process a rank, a thread a link. Keeps the first passes, some 200,000 intervals: a later pass
/// looks like an earlier one, and a viewer holds no more.
class Trace {
 public:
  /// Whether there was room for this pass; it is kept whole or not at all.
  bool add(const PassTimes& times);

  /// Collective. Rank 0 writes all ranks' intervals to its `file` (null elsewhere), at times since
  /// the first of them; nothing where no pass computed anything. Clocks of one host are the same;
  /// other hosts' are put in step at a barrier, to some hundreds of microseconds. Throws IoError on
  /// all ranks.
  void write(World& world, OutputFile* file) const;

 private:
  /// The threads that a viewer shows of a rank: the host, the travel links in their order, and
  /// the compute stream.
  using Lane = std::uint8_t;
  static constexpr Lane kHostLane = 0, kFirstLink = 1,
                        kComputeLane = kFirstLink + kTravelLinks.size();
  struct Mark {
    Interval interval;
    std::uint64_t pass;
    int unit;  // or one of the parts below
    Lane lane;
    bool waits;  // the compute stream only waited for the unit
  };
  static constexpr int kPass = -1, kEmbed = -2, kGraph = -3, kHead = -4;

  void keep(Lane lane, int unit, const Interval& interval, std::uint64_t pass, bool waits = false);
  static std::string_view name_of(Lane lane);
  static std::string name_of(const Mark& mark);
  /// This rank's events, one JSON object per line, each followed by a comma.
  std::string events(int rank, double zero) const;

  /// What of a pass no interval says.
  struct Travel {
    bool stays;
    Exchanged exchanged;
    std::uint64_t network_bytes;  // of this rank, from other hosts; 0: there are none
  };
  std::string arguments(const Mark& mark) const;

  std::vector<Mark> marks_;
  std::map<std::uint64_t, Travel> travels_;  // of the passes kept, in worlds of many
  double read_until_ = 0;                    // the last unit's read, in the order of the reads
  std::uint64_t passes_ = 0;                 // kept
  std::int64_t rows_ = 0;                    // of these
  std::uint64_t skipped_ = 0;                // not kept
};

}  // namespace zi
