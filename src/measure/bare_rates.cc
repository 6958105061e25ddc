#include "measure/bare_rates.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

namespace zi {

double largest_of(RankGroup& ranks, double mine) {
  return std::ranges::max(ranks.all_gather(mine));
}

double wall_seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double stream_seconds(Device& device, Stream& stream, const std::function<void()>& enqueue) {
  const auto start = device.make_event();
  const auto end = device.make_event();
  stream.record(*start);
  enqueue();
  stream.record(*end);
  stream.synchronize();
  return device.elapsed_seconds(*start, *end);
}

BareRate bare_rate(RankGroup& ranks, double amount, const Repeats& repeats,
                   const std::function<double()>& timed_step) {
  ranks.barrier();
  const double warm_up = largest_of(ranks, wall_seconds(timed_step));
  const int count = static_cast<int>(std::clamp(repeats.seconds / std::max(warm_up, 1e-9),
                                                static_cast<double>(repeats.least),
                                                static_cast<double>(repeats.most)));
  BareRate best;
  for (int i = 0; i < count; ++i) {
    ranks.barrier();
    const double mine = timed_step();
    const double slowest = largest_of(ranks, mine);
    if (mine > 0) best.own = std::max(best.own, amount / mine);
    if (slowest > 0) best.slowest = std::max(best.slowest, amount / slowest);
  }
  return best;
}

BareRate memory_copy_rate(RankGroup& ranks, Device& device, std::size_t bytes, Stream& stream,
                          const Repeats& repeats) {
  // The two buffers' relative position decides how evenly memory channels are used: take the best
  // of several.
  constexpr std::size_t kPlaces = 4;
  constexpr std::size_t kStep = std::size_t{5} << 20;
  Buffer from, to;
  ranks.all_or_none([&] {
    from = device.allocate(bytes);
    to = device.allocate(bytes + (kPlaces - 1) * kStep);
    device.zero(from.data(), bytes, stream);
    stream.synchronize();  // if a peer has no room, the buffers go at once
  });
  BareRate best;
  for (std::size_t place = 0; place < kPlaces; ++place) {
    const BareRate here = bare_rate(ranks, 2 * static_cast<double>(bytes), repeats, [&] {
      return stream_seconds(device, stream, [&] {
        device.copy(to.data() + place * kStep, from.data(), bytes, stream);
      });
    });
    best.own = std::max(best.own, here.own);
    best.slowest = std::max(best.slowest, here.slowest);
  }
  return best;
}

BareRate gather_rate(RankGroup& ranks, Device& device, Communicator& communicator,
                     std::span<std::byte> memory, std::size_t shard, std::size_t count,
                     Stream& stream, const Repeats& repeats) {
  const auto peers = static_cast<std::size_t>(ranks.size() - 1);
  const auto rank = static_cast<std::size_t>(ranks.rank());
  const std::size_t gathered = shard * (peers + 1);
  const std::size_t places = memory.size() / gathered;
  const auto gather = [&](std::size_t i) {
    std::byte* const blocks = memory.data() + i % places * gathered;
    communicator.all_gather(blocks + rank * shard, blocks, shard, stream);
  };
  const double received = static_cast<double>(shard * peers * count);
  return bare_rate(ranks, received, repeats, [&] {
    gather(0);  // untimed: after it all devices start together, however late their hosts were
    return stream_seconds(device, stream, [&] {
      for (std::size_t i = 1; i <= count; ++i) gather(i);
    });
  });
}

BareRate product_rate(RankGroup& ranks, Device& device, Ops& ops,
                      std::span<const RowBlockMatrix> matrices, DType dtype, std::int64_t rows,
                      Stream& stream, const Repeats& repeats) {
  std::int64_t widest = 0, longest = 0;
  std::size_t bytes = 0;
  for (const RowBlockMatrix& m : matrices) {
    widest = std::max(widest, m.padded_rows());
    longest = std::max(longest, m.cols);
    bytes += m.bytes();
  }
  Buffer input, output;
  ranks.all_or_none([&] {
    input = device.allocate(static_cast<std::size_t>(rows * longest) * size_of(dtype));
    output = device.allocate(static_cast<std::size_t>(rows * widest) * sizeof(float));
    // Not zeros: with those a GPU takes less power and runs faster.
    const UniformValues values{.key = 1, .half_width = 1, .stored = dtype};
    ops.fill_uniform(values, 0, rows * longest, input.data(), dtype, stream);
    stream.synchronize();
  });
  return bare_rate(ranks, static_cast<double>(bytes), repeats, [&] {
    return stream_seconds(device, stream, [&] {
      for (const RowBlockMatrix& m : matrices) {
        ops.matmul(input.data(), dtype, rows, m, output.as<float>(), stream);
      }
    });
  });
}

}  // namespace zi
