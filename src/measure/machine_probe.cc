#include "measure/machine_probe.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <limits>
#include <memory>
#include <span>
#include <string_view>

#include "measure/bare_rates.h"
#include "zero_infer/backend.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kGiB = std::size_t{1} << 30;
/// Far beyond the caches, and long enough for a copy engine to reach its rate.
constexpr std::size_t kCopyBytes = 256 * kMiB;
/// Copies of a repeat: over this many it does not matter that ranks never start at exactly the same
/// time.
constexpr int kCopies = 4;
/// Moved by one repeat of small gathers.
constexpr std::size_t kGatherBytes = 256 * kMiB;
/// A gather of the CPU backend gains nothing from more, and its memory is slow to take.
constexpr std::size_t kMostHostGatherBytes = kGiB;
/// Weights of the products: far beyond the caches.
constexpr std::size_t kDeviceWeightBytes = 2 * kGiB;
constexpr std::size_t kHostWeightBytes = 512 * kMiB;
/// The shape of each of their matrices: on a GPU large enough that launches do not count.
constexpr std::int64_t kWeightCols = 4096;
constexpr std::int64_t kDeviceWeightRows = 16384;
constexpr std::int64_t kHostWeightRows = 4096;
/// Free memory that a rank must have: every part takes a share of it.
constexpr std::size_t kLeastRoom = kGiB;
constexpr int kLeastRepeats = 3;
constexpr int kMostRepeats = 20;

/// Free memory for each rank, the least of all.
struct Room {
  std::size_t device = 0;
  std::size_t host = 0;
};

/// The parts of the measurement, one method each.
class MachineProbe {
 public:
  MachineProbe(World& world, const Backend& backend, const ProbeEffort& effort)
      : world_(world),
        device_(*backend.device),
        ops_(*backend.ops),
        backend_(backend),
        effort_(effort) {}

  /// What is known without measuring. First: the other parts take what is free.
  MachineLimits survey(const std::string& backend_name);
  void copies(MachineLimits& limits);
  /// Inside each host, and over all of them.
  void gathers(MachineLimits& limits);
  void memories(MachineLimits& limits);
  void products(MachineLimits& limits);

 private:
  void say(std::string_view what) const {
    if (world_.rank() == 0) log_info(what);
  }
  std::size_t least_of(std::size_t mine) const {
    return static_cast<std::size_t>(-largest_of(world_, -static_cast<double>(mine)));
  }
  /// As many as fit into a share of a part's time.
  Repeats repeats(double share) const {
    return {kLeastRepeats, kMostRepeats, effort_.seconds * share};
  }
  /// Gathers of `most_ranks` ranks, those of `ranks`, by ascending sizes while there is time: the
  /// slowest rank's rates, the same on all ranks of the world. A null communicator: this rank is
  /// alone on its host and waits for the others.
  std::vector<SizedRate> gathers_of(RankGroup& ranks, Communicator* communicator, int most_ranks);
  /// What a gather of `shard` bytes of each rank brings into the host that gets most.
  double into_a_host(std::size_t shard);
  std::size_t at_most(std::size_t bytes, std::size_t room) const {
    return std::min({bytes, effort_.most_bytes, room}) / kPageBytes * kPageBytes;
  }

  World& world_;
  Device& device_;
  Ops& ops_;
  const Backend& backend_;
  const ProbeEffort& effort_;
  Room room_;
};

MachineLimits MachineProbe::survey(const std::string& backend_name) {
  const RankHosts& hosts = world_.hosts();
  world_.all_or_none([&] {
    if (hosts.count() * hosts.most_on_a_host() == world_.size()) return;
    throw ConfigError(
        "hosts with different numbers of ranks cannot be planned for: start as many on each");
  });
  MachineLimits limits;
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  limits.source = fmt::format("measured on {}, {:%Y-%m-%d}", world_.broadcast(world_.host(), 0),
                              fmt::localtime(now));
  limits.backend = backend_name;
  limits.device = world_.broadcast(device_.name(), 0);
  limits.world = world_.size();
  limits.ranks_per_host = world_.hosts().most_on_a_host();
  const auto sharers = static_cast<std::size_t>(world_.local_size());
  const std::size_t device_free = device_.memory().free_bytes;
  const std::size_t host_free = device_.host_memory().free_bytes;
  limits.device_bytes = device_.is_host() ? 0 : least_of(device_free);
  limits.host_bytes = least_of(host_free);
  const Room mine{device_.is_host() ? device_free / sharers : device_free, host_free / sharers};
  world_.all_or_none([&] {
    const std::size_t least = std::min(kLeastRoom, 4 * effort_.most_bytes);
    if (std::min(mine.device, mine.host) >= least) return;
    throw ConfigError(fmt::format(
        "measuring needs {} of free memory for each rank, on the device and on the host; {} and {} "
        "are free: end what uses the rest, or use fewer ranks",
        format_memory(static_cast<double>(least)), format_memory(static_cast<double>(mine.device)),
        format_memory(static_cast<double>(mine.host))));
  });
  room_ = {least_of(mine.device), least_of(mine.host)};
  return limits;
}

void MachineProbe::copies(MachineLimits& limits) {
  say("copies from pinned memory to the device ..");
  const std::size_t bytes = at_most(kCopyBytes, std::min(room_.device, room_.host) / 8);
  Buffer pinned, target;
  std::unique_ptr<Stream> stream;
  world_.all_or_none([&] {
    pinned = device_.allocate_pinned_or_plain(bytes);
    target = device_.allocate(bytes);
    stream = device_.make_stream("limits");
  });
  const double amount = kCopies * static_cast<double>(bytes);
  const auto copy = [&] {
    return stream_seconds(device_, *stream, [&] {
      for (int i = 0; i < kCopies; ++i) device_.copy(target.data(), pinned.data(), bytes, *stream);
    });
  };
  // One rank of each host after the other, while the rest wait.
  const int turns = static_cast<int>(largest_of(world_, world_.local_size()));
  for (int turn = 0; turn < turns; ++turn) {
    const double alone = bare_rate(world_, amount, repeats(0.5 / turns), [&] {
                           return world_.local_rank() == turn ? copy() : 0.0;
                         }).slowest;
    limits.copy_alone = turn == 0 ? alone : std::min(limits.copy_alone, alone);
  }
  limits.copy_together = bare_rate(world_, amount, repeats(0.5), copy).slowest;
}

std::vector<SizedRate> MachineProbe::gathers_of(RankGroup& ranks, Communicator* communicator,
                                                int most_ranks) {
  std::vector<std::size_t> sizes = effort_.gathers;
  const std::size_t most =
      std::min(room_.device / 3, device_.is_host() ? kMostHostGatherBytes : room_.device);
  std::erase_if(sizes, [most](std::size_t bytes) { return bytes > most; });
  if (sizes.empty()) return {};
  const auto count_of_ranks = static_cast<std::size_t>(most_ranks);
  const auto shard_of = [&](std::size_t size) {
    return std::max(size / count_of_ranks / kPageBytes, std::size_t{1}) * kPageBytes;
  };
  Buffer slot;
  std::unique_ptr<Stream> stream;
  world_.all_or_none([&] { stream = device_.make_stream("gather", StreamPriority::kFirst); });
  world_.all_or_none([&] {
    if (communicator == nullptr) return;
    slot = communicator->allocate(device_,
                                  shard_of(sizes.back()) * static_cast<std::size_t>(ranks.size()));
    device_.zero(slot.data(), slot.bytes(), *stream);
  });
  std::vector<SizedRate> rates;
  const auto begin = std::chrono::steady_clock::now();
  for (const std::size_t size : sizes) {
    const std::size_t shard = shard_of(size);
    const std::size_t gathered = shard * count_of_ranks;
    if (!rates.empty()) {
      // Each repeat gathers twice, the first time untimed.
      const double next =
          static_cast<double>(gathered - shard) / rates.back().rate * 2 * (1 + kLeastRepeats);
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
      if (largest_of(world_, spent.count()) + next > 2 * effort_.seconds) break;
    }
    const std::size_t count =
        std::max(std::min(kGatherBytes, effort_.most_bytes) / gathered, std::size_t{1});
    double mine = std::numeric_limits<double>::infinity();
    if (communicator != nullptr) {
      mine = gather_rate(ranks, device_, *communicator, slot.span(), shard, count, *stream,
                         repeats(1.0 / static_cast<double>(sizes.size())))
                 .slowest;
    }
    rates.push_back({gathered, -largest_of(world_, -mine)});
  }
  return rates;
}

double MachineProbe::into_a_host(std::size_t shard) {
  Communicator& all = *backend_.communicator;
  const std::uint64_t before = all.network_bytes();
  const auto ranks = static_cast<std::size_t>(world_.size());
  Buffer blocks;
  std::unique_ptr<Stream> stream;
  world_.all_or_none([&] { stream = device_.make_stream("gather"); });
  world_.all_or_none([&] { blocks = all.allocate(device_, ranks * shard); });
  all.all_gather(blocks.data() + static_cast<std::size_t>(world_.rank()) * shard, blocks.data(),
                 shard, *stream);
  stream->synchronize();
  const std::vector<std::uint64_t> received = world_.all_gather(all.network_bytes() - before);
  std::uint64_t most = 0;
  for (int host = 0; host < world_.hosts().count(); ++host) {
    std::uint64_t here = 0;
    for (const int r : world_.hosts().ranks_of(host)) here += received[static_cast<std::size_t>(r)];
    most = std::max(most, here);
  }
  return static_cast<double>(most);
}

void MachineProbe::gathers(MachineLimits& limits) {
  const RankHosts& hosts = world_.hosts();
  if (world_.size() == 1) return;
  if (hosts.count() == 1) {
    say("all-gathers over the ranks ..");
    limits.gather = gathers_of(world_, backend_.communicator.get(), world_.size());
    return;
  }
  if (hosts.most_on_a_host() > 1) {
    say("all-gathers over the ranks of each host ..");
    const auto here = world_.split(hosts.host_of(world_.rank()));
    const auto communicator = make_communicator(world_, *here, backend_, {});
    limits.gather = gathers_of(*here, communicator.get(), hosts.most_on_a_host());
  }
  say("all-gathers over the hosts ..");
  limits.network = gathers_of(world_, backend_.communicator.get(), world_.size());
  const auto peers = static_cast<double>(world_.size() - 1);
  for (SizedRate& r : limits.network) {  // received by a rank, as yet
    const std::size_t shard = r.bytes / static_cast<std::size_t>(world_.size());
    r.rate *= into_a_host(shard) / (peers * static_cast<double>(shard));
  }
}

void MachineProbe::memories(MachineLimits& limits) {
  say("device memory and host memory ..");
  std::unique_ptr<Device> host;
  std::unique_ptr<Stream> stream, host_stream;
  world_.all_or_none([&] {
    stream = device_.make_stream("limits");
    host = make_cpu_device(threads_per_rank(world_.local_size()));
    host_stream = host->make_stream("limits");
  });
  limits.device_memory = memory_copy_rate(world_, device_, at_most(kCopyBytes, room_.device / 4),
                                          *stream, repeats(0.1))
                             .slowest;
  const double of_a_rank = memory_copy_rate(world_, *host, at_most(kCopyBytes, room_.host / 4),
                                            *host_stream, repeats(0.1))
                               .slowest;
  limits.host_memory = -largest_of(world_, -of_a_rank * world_.local_size());
}

void MachineProbe::products(MachineLimits& limits) {
  say("products ..");
  constexpr DType kType = DType::kBFloat16;
  const std::size_t row_bytes = static_cast<std::size_t>(kWeightCols) * size_of(kType);
  const std::size_t most =
      at_most(device_.is_host() ? kHostWeightBytes : kDeviceWeightBytes, room_.device / 4);
  const auto rows_each =
      std::clamp(static_cast<std::int64_t>(most / row_bytes / 4), std::int64_t{1},
                 device_.is_host() ? kHostWeightRows : kDeviceWeightRows);
  RowBlockMatrix matrix{
      .rows = rows_each, .cols = kWeightCols, .rows_per_block = rows_each, .format = kType};
  matrix.block_stride_bytes = matrix.bytes();
  std::vector<RowBlockMatrix> matrices(std::max(most / matrix.bytes(), std::size_t{1}), matrix);
  Buffer weights;
  std::unique_ptr<Stream> stream;
  world_.all_or_none([&] {
    stream = device_.make_stream("limits");
    weights = device_.allocate(matrices.size() * matrix.bytes());
    const UniformValues values{.key = 2, .half_width = 0.05f, .stored = kType};
    ops_.fill_uniform(values, 0, static_cast<std::int64_t>(weights.bytes() / size_of(kType)),
                      weights.data(), kType, *stream);
    stream->synchronize();
  });
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    matrices[i].data = weights.data() + i * matrix.bytes();
  }
  const double share = 1.0 / static_cast<double>(effort_.rows.size());
  for (const std::int64_t rows : effort_.rows) {
    // Many rows take long with all of the weights, and use each often enough that caches, which
    // would help with few weights, do not matter.
    std::span<const RowBlockMatrix> used(matrices);
    if (!limits.products.empty()) {
      const ProductRate& last = limits.products.back();
      const double sweep = static_cast<double>(weights.bytes()) / last.weights_rate *
                           static_cast<double>(rows) / static_cast<double>(last.rows);
      const double fits = effort_.seconds * share / (sweep * (1 + kLeastRepeats));
      used = used.first(static_cast<std::size_t>(std::clamp(
          fits * static_cast<double>(matrices.size()), 1.0, static_cast<double>(matrices.size()))));
    }
    const double rate =
        product_rate(world_, device_, ops_, used, kType, rows, *stream, repeats(share)).slowest;
    // Two operations for each of the row's elements, which have two bytes.
    limits.products.push_back({rows, rate, rate * static_cast<double>(rows)});
  }
}

}  // namespace

MachineLimits probe_machine(World& world, const Backend& backend, const ProbeEffort& effort) {
  MachineProbe probe(world, backend, effort);
  MachineLimits limits = probe.survey(backend.name);
  probe.copies(limits);
  probe.gathers(limits);
  probe.memories(limits);
  probe.products(limits);
  return limits;
}

void probe_storage(World& world, const Backend& backend, StorageProbe* probe,
                   const StorageEffort& effort, MachineLimits& limits) {
  if (world.rank() == 0) log_info("writes and reads of a file ..");
  StorageTable mine;
  world.all_or_none([&] {
    if (probe != nullptr) mine = probe->measure(*backend.device);
  });
  limits.storage_method = world.broadcast(mine.method, 0);
  const std::size_t count = effort.sizes.size() * effort.depths.size();
  const auto take = [&](std::vector<double> rates, std::vector<StorageRate>& list) {
    if (probe == nullptr) rates.assign(count, 0);
    for (std::size_t i = 0; i < count; ++i) {
      // The least of those hosts' that have a probe; 0 where one of them left it out.
      const double slow = probe != nullptr ? -rates[i] : -std::numeric_limits<double>::infinity();
      const double rate = -largest_of(world, slow);
      if (rate <= 0) continue;
      list.push_back(
          {effort.depths[i % effort.depths.size()], effort.sizes[i / effort.depths.size()], rate});
    }
  };
  take(mine.reads, limits.reads);
  take(mine.writes, limits.writes);
}

}  // namespace zi
