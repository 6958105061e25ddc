#include "engine/pass_times.h"

#include <algorithm>

namespace zi {
namespace {

/// A wait is shared out by what the unit was at meanwhile: until its last byte was read, until it
/// was copied, until it was gathered. A copy on the device that makes room for a gather counts as
/// the gather's.
void add_wait(const UnitTimes& unit, PassSplit& split) {
  const auto until = [&unit](double end) {
    return std::clamp(end, unit.wait.begin, unit.wait.end);
  };
  const double was_read = unit.read.happened() ? until(unit.read.end) : unit.wait.begin;
  const bool copied = unit.tier != Tier::kDevice;
  double was_copied = was_read;
  if (copied) {
    was_copied = unit.gather.happened() ? std::max(was_read, until(unit.copy.end)) : unit.wait.end;
  }
  split.wait_read += was_read - unit.wait.begin;
  split.wait_copy += was_copied - was_read;
  split.wait_gather += unit.wait.end - was_copied;
}

}  // namespace

PassSplit& PassSplit::operator+=(const PassSplit& other) {
  compute += other.compute;
  wait_read += other.wait_read;
  wait_copy += other.wait_copy;
  wait_gather += other.wait_gather;
  copy += other.copy;
  gather += other.gather;
  return *this;
}

PassSplit& PassSplit::operator*=(double factor) {
  for (double* part : {&compute, &wait_read, &wait_copy, &wait_gather, &copy, &gather}) {
    *part *= factor;
  }
  return *this;
}

PassSplit split_of(const PassTimes& times) {
  PassSplit split;
  split.compute = times.embed.seconds() + times.graph.seconds() + times.head.seconds();
  for (const UnitTimes& unit : times.units) {
    split.compute += unit.compute.seconds();
    add_wait(unit, split);
    if (unit.tier != Tier::kDevice) split.copy += unit.copy.seconds();
    split.gather += unit.gather.seconds();
  }
  return split;
}

}  // namespace zi
