#include "measure/run_limits.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "offload/nvme_store.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

constexpr int kRepeats = 5;
/// Bytes of one repeat at most, whole units of them and one at least.
constexpr std::size_t kReadBytes = std::size_t{512} << 20;
constexpr std::size_t kCopyBytes = std::size_t{1} << 30;
constexpr std::size_t kGatherBytes = std::size_t{2} << 30;

/// Bytes per second of the best of some repeats, after one to warm up: what the link can do. Every
/// rank repeats equally often, since the step may be collective.
double rate(World& world, std::size_t bytes, const std::function<void()>& step) {
  double best = 0;
  for (int i = 0; i <= kRepeats; ++i) {
    world.barrier();
    const auto start = std::chrono::steady_clock::now();
    step();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (i > 0) best = std::max(best, static_cast<double>(bytes) / took.count());
  }
  return best;
}

/// Bare products of one row with everything that rests on the device, in the order of a pass: as
/// much memory is read as a pass reads there, so that caches help neither more nor less.
double product_rate(World& world, Device& device, Ops& ops, const MemoryPlan& plan,
                    const ModelWeights& weights, Stream& stream) {
  std::vector<RowBlockMatrix> matrices = {
      plan.head.front().own(0, weights.head_shard(), world.rank())};
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    const std::byte* const shard = weights.stores()[b]->resident(static_cast<int>(b));
    if (shard == nullptr) continue;
    for (std::size_t i = 0; i < plan.blocks[b].matrices().size(); ++i) {
      matrices.push_back(plan.blocks[b].own(i, shard, world.rank()));
    }
  }
  std::size_t widest = 0, longest = 0, bytes = 0;
  for (const RowBlockMatrix& m : matrices) {
    widest = std::max(widest, static_cast<std::size_t>(m.padded_rows()));
    longest = std::max(longest, static_cast<std::size_t>(m.cols));
    bytes += m.bytes();
  }
  const Buffer input = device.allocate(longest * sizeof(float));
  const Buffer output = device.allocate(widest * sizeof(float));
  device.zero(input.data(), input.bytes(), stream);
  return rate(world, bytes, [&] {
    for (const RowBlockMatrix& m : matrices) {
      ops.matmul(input.data(), plan.compute_dtype, 1, m, output.as<float>(), stream);
    }
    stream.synchronize();
  });
}

/// Bytes of a buffer for bare copies within device memory, far beyond any cache.
constexpr std::size_t kMemoryCopyBytes = std::size_t{512} << 20;
/// A smaller one would rather measure caches.
constexpr std::size_t kLeastMemoryCopyBytes = std::size_t{128} << 20;

double memory_rate(World& world, Device& device, const MemoryPlan& plan, Stream& stream) {
  // In memory that the pass runner has given back, so that measuring adds nothing to the plan.
  const std::size_t room = plan.kv + plan.workspace + plan.head_workspace;
  const std::size_t bytes = std::min(kMemoryCopyBytes, room / 3 / kPageBytes * kPageBytes);
  if (bytes < kLeastMemoryCopyBytes) return 0;
  // Where the two lie to each other decides how evenly channels are used: the best of some places.
  constexpr std::size_t kPlaces = 4;
  constexpr std::size_t kStep = std::size_t{5} << 20;
  const Buffer from = device.allocate(bytes);
  const Buffer to = device.allocate(bytes + (kPlaces - 1) * kStep);
  device.zero(from.data(), bytes, stream);
  double best = 0;
  for (std::size_t place = 0; place < kPlaces; ++place) {
    best = std::max(best, rate(world, 2 * bytes, [&] {
                      device.copy(to.data() + place * kStep, from.data(), bytes, stream);
                      stream.synchronize();
                    }));
  }
  return best;
}

}  // namespace

RunLimits measure_run_limits(World& world, Engine& engine) {
  engine.end_passes();
  Device& device = *engine.backend().device;
  Ops& ops = *engine.backend().ops;
  Communicator* const communicator = engine.backend().communicator.get();
  const MemoryPlan& plan = engine.plan();
  const ModelWeights& weights = engine.weights();
  RunLimits limits;
  const PartitionLayout& layout = plan.blocks.front();
  const auto stream = device.make_stream("limits");
  const std::size_t shard = layout.shard_bytes();
  const std::size_t slot_bytes = layout.gathered_bytes();
  Buffer slot;
  if (plan.host_shards > 0 || communicator != nullptr) {
    slot = communicator != nullptr ? communicator->allocate(device, slot_bytes)
                                   : device.allocate(slot_bytes);
    device.zero(slot.data(), slot_bytes, *stream);
    stream->synchronize();
  }
  if (plan.host_shards > 0) {
    // From where the shards rest, one behind the other.
    std::vector<int> units;
    for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
      if (plan.tiers[b] != Tier::kHost) continue;
      if (!units.empty() && (units.size() + 1) * shard > kCopyBytes) break;
      units.push_back(static_cast<int>(b));
    }
    limits.copy = rate(world, units.size() * shard, [&] {
      for (const int u : units) {
        weights.stores()[static_cast<std::size_t>(u)]->finish_read(u, slot.data(), *stream);
      }
      stream->synchronize();
    });
  }
  if (communicator != nullptr) {
    const std::size_t count =
        std::clamp<std::size_t>(kGatherBytes / slot_bytes, 1, plan.blocks.size());
    const std::size_t received = (slot_bytes - shard) * count;
    std::byte* const own = slot.data() + shard * static_cast<std::size_t>(world.rank());
    limits.gather = rate(world, received, [&] {
      for (std::size_t i = 0; i < count; ++i) {
        communicator->all_gather(own, slot.data(), shard, *stream);
      }
      stream->synchronize();
    });
  }
  if (plan.nvme_shards > 0) {
    world.barrier();
    limits.read = measure_bare_read(device, weights.shard_file(), NvmeOptions{},
                                    std::min(plan.nvme_shards, kReadBytes));
  }
  limits.product = product_rate(world, device, ops, plan, weights, *stream);
  limits.memory = memory_rate(world, device, plan, *stream);
  return limits;
}

}  // namespace zi
