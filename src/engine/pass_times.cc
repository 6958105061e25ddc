#include "engine/pass_times.h"

#include <algorithm>

namespace zi {
namespace {

/// A wait is divided by what the unit was doing at the time: being read until its last byte was
/// there, then being copied, then being gathered. A copy on the device that prepares a gather
/// counts as part of the gather.
void add_wait(const UnitTimes& unit, PassSplit& split) {
  const auto until = [&unit](double end) {
    return std::clamp(end, unit.wait.begin, unit.wait.end);
  };
  const Interval& read = unit.moved[Link::kRead];
  const double was_read = read.happened() ? until(read.end) : unit.wait.begin;
  double was_copied = was_read;
  if (unit.tier != Tier::kDevice) {
    was_copied = unit.moved[Link::kGather].happened()
                     ? std::max(was_read, until(unit.moved[Link::kCopy].end))
                     : unit.wait.end;
  }
  split.waited[Link::kRead] += was_read - unit.wait.begin;
  split.waited[Link::kCopy] += was_copied - was_read;
  split.waited[Link::kGather] += unit.wait.end - was_copied;
}

}  // namespace

PassSplit& PassSplit::operator+=(const PassSplit& other) {
  compute += other.compute;
  waited += other.waited;
  busy += other.busy;
  return *this;
}

PassSplit& PassSplit::operator*=(double factor) {
  compute *= factor;
  waited *= factor;
  busy *= factor;
  return *this;
}

PassSplit split_of(const PassTimes& times) {
  PassSplit split;
  split.compute = times.embed.seconds() + times.graph.seconds() + times.head.seconds();
  for (const UnitTimes& unit : times.units) {
    split.compute += unit.compute.seconds();
    add_wait(unit, split);
    if (unit.tier != Tier::kDevice) {
      split.busy[Link::kCopy] += unit.moved[Link::kCopy].seconds();
    }
    split.busy[Link::kGather] += unit.moved[Link::kGather].seconds();
  }
  return split;
}

}  // namespace zi
