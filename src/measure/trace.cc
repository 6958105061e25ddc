#include "measure/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "zero_infer/log.h"

namespace zi {
namespace {

constexpr std::size_t kMostMarks = 200'000;

/// What a rank's clock says at one moment, and whose clock it is.
struct Moment {
  double now;
  double first;  // its first interval's beginning
  std::size_t host;
  std::int64_t rows;  // that were computed
};

}  // namespace

void Trace::keep(Lane lane, int unit, const Interval& interval, std::uint64_t pass, bool waits) {
  if (interval.happened()) marks_.push_back({interval, pass, unit, lane, waits});
}

bool Trace::add(const PassTimes& t) {
  if (skipped_ > 0 || marks_.size() + 5 * t.units.size() + 4 > kMostMarks) {
    ++skipped_;
    return false;
  }
  keep(kHostLane, kPass, t.host, t.pass);
  if (t.exchanged.trips > 0) travels_[t.pass] = {t.stays, t.exchanged, t.network_bytes};
  keep(kComputeLane, kEmbed, t.embed, t.pass);
  keep(kComputeLane, kGraph, t.graph, t.pass);
  for (const UnitTimes& unit : t.units) {
    PerLink<Interval> moved = unit.moved;
    // Several reads are under way at once: each counts from the end of the one before it.
    Interval& read = moved[Link::kRead];
    read.begin = std::max(read.begin, read_until_);
    read_until_ = std::max(read_until_, read.end);
    Lane lane = kFirstLink;
    for (const Link link : kTravelLinks) keep(lane++, unit.unit, moved[link], t.pass);
    keep(kComputeLane, unit.unit, unit.wait, t.pass, true);
    keep(kComputeLane, unit.unit, unit.compute, t.pass);
  }
  keep(kComputeLane, kHead, t.head, t.pass);
  ++passes_;
  rows_ += t.rows;
  return true;
}

std::string_view Trace::name_of(Lane lane) {
  if (lane == kHostLane) return "host";
  if (lane == kComputeLane) return "compute";
  return key_of(kTravelLinks[lane - kFirstLink]);
}

std::string Trace::name_of(const Mark& mark) {
  switch (mark.unit) {
    case kPass:
      return fmt::format("pass {}", mark.pass);
    case kEmbed:
      return "embedding";
    case kGraph:
      return "all blocks (graph)";
    case kHead:
      return "head and samples";
    default:
      return fmt::format("{}block {}", mark.waits ? "wait for " : "", mark.unit);
  }
}

std::string Trace::arguments(const Mark& mark) const {
  std::string text = fmt::format(R"("pass":{})", mark.pass);
  const auto found = travels_.find(mark.pass);
  if (mark.unit != kPass || found == travels_.end()) return text;
  const Travel& travel = found->second;
  text += fmt::format(R"(,"weights_stay":{},"exchanges":{},"exchanged_bytes":{})", travel.stays,
                      travel.exchanged.trips, travel.exchanged.bytes);
  if (travel.network_bytes > 0) {
    text += fmt::format(R"(,"network_bytes":{})", travel.network_bytes);
  }
  return text;
}

std::string Trace::events(int rank, double zero) const {
  std::string out;
  const auto at = std::back_inserter(out);
  fmt::format_to(at,
                 R"({{"ph":"M","name":"process_name","pid":{0},"args":{{"name":"rank {0}"}}}},)"
                 "\n",
                 rank);
  for (Lane lane = kHostLane; lane <= kComputeLane; ++lane) {
    fmt::format_to(
        at,
        R"({{"ph":"M","name":"thread_name","pid":{0},"tid":{1},"args":{{"name":"{2}"}}}},)"
        "\n"
        R"({{"ph":"M","name":"thread_sort_index","pid":{0},"tid":{1},"args":{{"sort_index":{1}}}}},)"
        "\n",
        rank, lane, name_of(lane));
  }
  for (const Mark& m : marks_) {
    // Whole nanoseconds, so that an interval does not begin within the one before it.
    const auto nanoseconds = [zero](double moment) { return std::llround((moment - zero) * 1e9); };
    const auto begin = nanoseconds(m.interval.begin), end = nanoseconds(m.interval.end);
    fmt::format_to(
        at,
        R"({{"ph":"X","name":"{}","cat":"{}","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},"args":{{{}}}}},)"
        "\n",
        name_of(m), m.waits ? "wait" : name_of(m.lane), rank, m.lane,
        static_cast<double>(begin) * 1e-3, static_cast<double>(end - begin) * 1e-3, arguments(m));
  }
  return out;
}

void Trace::write(World& world, OutputFile* file) const {
  double first = std::numeric_limits<double>::max();
  for (const Mark& m : marks_) first = std::min(first, m.interval.begin);
  world.barrier();
  const Moment mine{host_seconds(), first, std::hash<std::string>()(world.host()), rows_};
  const std::vector<Moment> all = world.all_gather(mine);
  // Added to a rank's clock, it is rank 0's.
  const auto offset = [&](const Moment& m) {
    return m.host == all.front().host ? 0.0 : all.front().now - m.now;
  };
  double zero = std::numeric_limits<double>::max();
  for (const Moment& m : all) zero = std::min(zero, m.first + offset(m));
  const std::vector<std::string> events =
      world.gather(this->events(world.rank(), zero - offset(mine)), 0);
  world.all_or_none([&] {
    if (world.rank() != 0) return;
    if (std::ranges::all_of(all, [](const Moment& m) { return m.rows == 0; })) {
      log_warning(fmt::format("nothing was computed: no trace was written to {}", file->name()));
      return;
    }
    std::string text = fmt::format(
        R"({{"displayTimeUnit":"ms","otherData":{{"program":"zero-infer","ranks":{},"passes":{},)"
        R"("passes_left_out":{}}},)"
        "\n\"traceEvents\":[\n",
        world.size(), passes_, skipped_);
    for (const std::string& of_rank : events) text += of_rank;
    text.erase(text.size() - 2);  // the last comma and line end
    file->write(text + "\n]}\n");
    if (skipped_ > 0) {
      log_info(fmt::format("{} holds the first {} of {} passes", file->name(), passes_,
                           passes_ + skipped_));
    }
  });
}

}  // namespace zi
