#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "measure/bare_rates.h"
#include "zero_infer/device.h"

namespace zi {

/// Seconds of a call in each of the repeats, ascending. Each call reads `bytes` of its own, and
/// after `around` calls those of the first again.
template <typename Call>
std::vector<double> call_seconds(Device& device, Stream& stream, int repeats, std::size_t around,
                                 double bytes, const Call& call) {
  // Around all, and recorded where the device can, as passes are: else the host's launches of short
  // calls would be timed.
  const int calls = std::max(static_cast<int>(around), 32);
  const auto call_all = [&] {
    for (int i = 0; i < calls; ++i) call();
  };
  call_all();
  stream.synchronize();
  const auto graph = device.record(stream, call_all);
  // As often as it takes to read 4 GB.
  const int rounds = static_cast<int>(std::ceil(4e9 / (calls * bytes)));
  const auto timed = [&] {
    for (int i = 0; i < rounds; ++i) {
      if (graph == nullptr) {
        call_all();
      } else {
        graph->launch(stream);
      }
    }
  };
  // An idle GPU takes some 50 ms to come to its full clocks.
  for (double warm = 0; warm < 0.1;) warm += stream_seconds(device, stream, timed);
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    seconds.push_back(stream_seconds(device, stream, timed) / (calls * rounds));
  }
  std::ranges::sort(seconds);
  return seconds;
}

}  // namespace zi
