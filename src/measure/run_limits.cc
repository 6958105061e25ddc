#include "measure/run_limits.h"

#include <algorithm>
#include <vector>

#include "measure/bare_rates.h"
#include "offload/nvme_store.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

/// Bytes of one repeat at most, whole units of them and one at least.
constexpr std::size_t kRunReadBytes = std::size_t{512} << 20;
constexpr std::size_t kRunCopyBytes = std::size_t{1} << 30;
constexpr std::size_t kRunGatherBytes = std::size_t{2} << 30;

/// Bare products of one row with everything that rests on the device, in the order of a pass that
/// gathers: as much memory is read as such a pass reads there, so that caches help neither more nor
/// less.
double resident_product_rate(RankGroup& ranks, Device& device, Ops& ops, const MemoryPlan& plan,
                             const ModelWeights& weights, Stream& stream) {
  std::vector<RowBlockMatrix> matrices = {
      plan.head.front().own(0, weights.head_shard(), ranks.rank())};
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    const PartitionLayout& block = plan.blocks[b];
    const std::byte* const shard = weights.stores()[b]->resident(static_cast<int>(b));
    const std::byte* const whole = weights.stores()[b]->replicated(static_cast<int>(b));
    if (shard == nullptr) continue;
    for (std::size_t i = 0; i < block.matrices().size(); ++i) {
      matrices.push_back(whole != nullptr ? block.gathered(i, whole)
                                          : block.own(i, shard, ranks.rank()));
    }
  }
  return product_rate(ranks, device, ops, matrices, plan.compute_dtype, 1, stream, {}).own;
}

/// Bytes of a buffer for bare copies within device memory, far beyond any cache.
constexpr std::size_t kMemoryCopyBytes = std::size_t{512} << 20;
/// A smaller one would measure caches.
constexpr std::size_t kLeastMemoryCopyBytes = std::size_t{128} << 20;

double resident_memory_rate(RankGroup& ranks, Device& device, const MemoryPlan& plan,
                            Stream& stream) {
  // In memory that the pass runner has given back, so that measuring adds nothing to the plan.
  const std::size_t room = plan.kv + plan.workspace + plan.head_workspace;
  const std::size_t bytes = std::min(kMemoryCopyBytes, room / 3 / kPageBytes * kPageBytes);
  if (bytes < kLeastMemoryCopyBytes) return 0;
  return memory_copy_rate(ranks, device, bytes, stream, {}).own;
}

}  // namespace

RunLimits measure_travel_limits(Engine& engine) {
  RankGroup& ranks = engine.partition();
  engine.end_passes();
  Device& device = *engine.backend().device;
  Communicator* const communicator = engine.backend().communicator.get();
  const MemoryPlan& plan = engine.plan();
  const ModelWeights& weights = engine.weights();
  RunLimits limits;
  const PartitionLayout& layout = plan.blocks.front();
  const auto stream = device.make_stream("limits");
  const std::size_t shard = layout.shard_bytes();
  const bool gathers = plan.slots > 0 && communicator != nullptr && !plan.all_stay();
  const std::size_t slot_bytes = gathers ? layout.gathered_bytes() : shard;
  Buffer slot;
  if (plan.host_shards > 0 || gathers) {
    slot = communicator != nullptr ? communicator->allocate(device, slot_bytes)
                                   : device.allocate(slot_bytes);
    device.zero(slot.data(), slot_bytes, *stream);
    stream->synchronize();
  }
  if (plan.host_shards > 0) {
    // From where the shards rest, one after the other.
    std::vector<int> units;
    for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
      if (plan.tiers[b] != Tier::kHost) continue;
      if (!units.empty() && (units.size() + 1) * shard > kRunCopyBytes) break;
      units.push_back(static_cast<int>(b));
    }
    const auto copy_all = [&] {
      for (const int u : units) {
        weights.stores()[static_cast<std::size_t>(u)]->finish_read(u, slot.data(), *stream);
      }
    };
    limits[Link::kCopy] = bare_rate(ranks, static_cast<double>(units.size() * shard), {}, [&] {
                            return stream_seconds(device, *stream, copy_all);
                          }).own;
  }
  if (gathers) {
    const std::size_t count =
        std::clamp<std::size_t>(kRunGatherBytes / slot_bytes, 1, plan.blocks.size());
    limits[Link::kGather] =
        gather_rate(ranks, device, *communicator, slot.span(), shard, count, *stream, {}).own;
  }
  if (plan.nvme_shards > 0) {
    ranks.barrier();
    limits[Link::kRead] = measure_bare_read(device, weights.shard_file(), NvmeOptions{},
                                            std::min(plan.nvme_shards, kRunReadBytes));
  }
  return limits;
}

RunLimits measure_run_limits(Engine& engine) {
  RankGroup& ranks = engine.partition();
  RunLimits limits = measure_travel_limits(engine);
  Device& device = *engine.backend().device;
  const auto stream = device.make_stream("limits");
  limits[Link::kProducts] = resident_product_rate(ranks, device, *engine.backend().ops,
                                                  engine.plan(), engine.weights(), *stream);
  limits[Link::kDeviceMemory] = resident_memory_rate(ranks, device, engine.plan(), *stream);
  return limits;
}

}  // namespace zi
