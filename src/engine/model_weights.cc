#include "engine/model_weights.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <system_error>
#include <utility>

#include "base/progress.h"
#include "engine/weight_loader.h"
#include "offload/read_threads.h"
#include "offload/shard_file.h"
#include "offload/shard_writer.h"
#include "zero_infer/bytes.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

std::size_t vector_stride(const TensorSpec& v) {
  return align_up(static_cast<std::size_t>(v.elements()) * sizeof(float), kMatrixAlignment);
}

/// Of the weights in a shard file. A source that makes any tensor knows no shapes, and shards of
/// two models may be of one size.
std::uint64_t identity_of(const WeightSource& source, const MemoryPlan& plan) {
  std::uint64_t identity = source.identity();
  if (!source.names().empty()) return identity;
  for (const PartitionLayout& block : plan.blocks) {
    for (const PartitionLayout::Matrix& matrix : block.matrices()) {
      for (const std::int64_t extent : matrix.tensor.shape) {
        identity = mix64(identity ^ static_cast<std::uint64_t>(extent));
      }
    }
  }
  return identity;
}

/// The blocks' format. Where some of their matrices are not packed, the type of those stands beside
/// it: which they are is the checkpoint's.
WeightFormat format_in_key(const MemoryPlan& plan) {
  WeightFormat format = plan.block_format;
  for (const PartitionLayout& block : plan.blocks) {
    for (const PartitionLayout::Matrix& matrix : block.matrices()) {
      if (!matrix.format.packed()) format.dtype = matrix.format.dtype;
    }
  }
  return format;
}

}  // namespace

std::optional<ShardFilePlan> plan_of_shard_file(const WeightSource& source, const MemoryPlan& plan,
                                                const LoadOptions& options) {
  ShardFilePlan file;
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    if (plan.tiers[b] != Tier::kNvme) continue;
    file.units.push_back(static_cast<int>(b));
    file.shards.push_back({static_cast<int>(b), plan.blocks[b].shard_bytes()});
  }
  if (file.units.empty()) return std::nullopt;  // a checkpoint is sampled for the rest
  file.key = {.model_identity = identity_of(source, plan),
              .model_name = options.model_name,
              .world = options.world,
              .rank = options.rank,
              .format = format_in_key(plan)};
  return file;
}

std::size_t ModelWeights::loading_bytes(const MemoryPlan& plan, bool by_rule) {
  const bool made = by_rule && std::ranges::all_of(plan.blocks, WeightLoader::can_make);
  if (made || plan.device_is_host) return plan.vectors;
  return std::max(plan.vectors, WeightLoader::kPinnedBytes);
}

ModelWeights::ModelWeights(Device& device, Ops& ops, const WeightSource& source,
                           const ModelSpec& spec, const MemoryPlan& plan,
                           const LoadOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  load_vectors(device, source, spec, plan, options.threads);
  load_shards(device, ops, source, plan, options);
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    const Tier tier = plan.tiers[b];
    ShardStore* const on_device =
        plan.replicated[b] ? static_cast<ShardStore*>(replicated_.get()) : device_.get();
    store_of_block_.push_back(tier == Tier::kDevice ? on_device
                              : tier == Tier::kHost ? static_cast<ShardStore*>(host_.get())
                                                    : nvme_.get());
  }
  load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void ModelWeights::gather_replicas(Device& device, Communicator& communicator) {
  const auto start = std::chrono::steady_clock::now();
  const auto stream = device.make_stream("gather");
  replicated_->gather(communicator, *stream);
  stream->synchronize();
  communicator.check();
  load_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void ModelWeights::load_vectors(Device& device, const WeightSource& source, const ModelSpec& spec,
                                const MemoryPlan& plan, int threads) {
  vectors_ = device.allocate(plan.vectors);
  Buffer staging = device.allocate_pinned(plan.vectors);
  ReadThreads reads(threads);  // each one mostly waits for the disk
  std::size_t offset = 0;
  const auto load = [&](const std::vector<TensorSpec>& vectors) {
    std::vector<const float*> out;
    for (const TensorSpec& v : vectors) {
      reads.start([&, dst = staging.data() + offset] {
        source.read(v, 0, v.elements(), DType::kFloat32, dst);
      });
      out.push_back(reinterpret_cast<const float*>(vectors_.data() + offset));
      offset += vector_stride(v);
    }
    return out;
  };
  model_vectors_ = load(spec.vectors);
  head_vectors_ = load(spec.head.vectors);
  for (const UnitSpec& block : spec.blocks) block_vectors_.push_back(load(block.vectors));
  reads.finish();
  const auto stream = device.make_stream("load");
  device.copy(vectors_.data(), staging.data(), offset, *stream);
  stream->synchronize();
}

void ModelWeights::load_shards(Device& device, Ops& ops, const WeightSource& source,
                               const MemoryPlan& plan, const LoadOptions& options) {
  std::vector<int> units[3];
  std::vector<std::size_t> bytes[3];
  std::vector<int> replicated;  // of those on the device
  std::vector<std::size_t> replicated_bytes;
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    const auto tier = static_cast<std::size_t>(plan.tiers[b]);
    const bool one_of_them = plan.replicated[b];
    (one_of_them ? replicated : units[tier]).push_back(static_cast<int>(b));
    (one_of_them ? replicated_bytes : bytes[tier]).push_back(plan.blocks[b].shard_bytes());
  }
  const auto of = [](Tier tier) { return static_cast<std::size_t>(tier); };
  const auto layout = [&](int u) -> const PartitionLayout& {
    return plan.blocks[static_cast<std::size_t>(u)];
  };

  const std::size_t loaded_bytes =
      plan.device_shards + plan.host_shards + plan.head_shard + plan.embedding_shard;
  const std::optional<ShardFilePlan> file = plan_of_shard_file(source, plan, options);
  const bool writes = file && shard_bytes_to_write(*options.nvme_path, file->key, file->shards) > 0;
  const std::size_t all_bytes = loaded_bytes + (writes ? plan.nvme_shards : 0);
  Progress progress(writes ? "writing the shard file" : "loading weights", all_bytes,
                    Progress::Unit::kBytes, options.show_progress);
  std::atomic<std::size_t> all_done{0};
  const auto tell = [&](std::size_t done) {
    progress.add(done);
    const std::size_t now_done = all_done.fetch_add(done, std::memory_order_relaxed) + done;
    if (options.observer) options.observer(now_done, all_bytes);
  };
  // All memory first: its pages are taken, or pinned, while the first shards are read.
  head_ = device.allocate_for_loading(plan.head_shard);
  std::vector<std::span<std::byte>> parts = {head_.span()};
  const bool embedding_far = plan.embedding_tier == Tier::kHost;
  if (plan.embedding_shard > 0 && embedding_far) {
    embedding_ = device.allocate_pinned(plan.embedding_shard);
  } else if (plan.embedding_shard > 0) {
    embedding_ = device.allocate_for_loading(plan.embedding_shard);
    parts.push_back(embedding_.span());
  }
  if (const auto& on_device = units[of(Tier::kDevice)]; !on_device.empty()) {
    device_ = std::make_unique<DeviceStore>(device, on_device, bytes[of(Tier::kDevice)]);
    for (int u : on_device) parts.push_back(device_->shard(u));
  }
  if (!replicated.empty()) {
    replicated_ = std::make_unique<ReplicatedStore>(device, replicated, replicated_bytes,
                                                    options.rank, options.world);
    for (int u : replicated) parts.push_back(replicated_->shard(u));
  }
  if (const auto& on_host = units[of(Tier::kHost)]; !on_host.empty()) {
    host_ = std::make_unique<HostStore>(device, on_host, bytes[of(Tier::kHost)]);
  }
  WeightLoader loader(device, ops, source, {.rank = options.rank, .threads = options.threads},
                      tell);
  loader.take_pages_ahead(std::move(parts));
  loader.load_to_device(plan.head.front(), head_.data());
  if (plan.embedding_shard > 0 && embedding_far) {
    loader.load_to_host(plan.embedding.front(), embedding_.span());
  } else if (plan.embedding_shard > 0) {
    loader.load_to_device(plan.embedding.front(), embedding_.data());
  }
  for (int u : units[of(Tier::kDevice)]) loader.load_to_device(layout(u), device_->shard(u).data());
  for (int u : replicated) loader.load_to_device(layout(u), replicated_->shard(u).data());
  for (int u : units[of(Tier::kHost)]) loader.load_to_host(layout(u), host_->shard(u));
  if (file) {
    // This and the reads of the head are all that a start from an existing file waits for.
    std::vector<ShardReader> readers;
    for (int u : file->units) readers.emplace_back(source, layout(u), options.rank);
    std::vector<const ShardReader*> pointers;
    for (const ShardReader& reader : readers) pointers.push_back(&reader);
    shard_file_ = prepare_shard_file(
        *options.nvme_path, file->key, file->units, pointers, tell, kShardExtentBytes,
        options.others_write_alike ? OtherWriter::kWait : OtherWriter::kRefuse);
    if (writes && options.on_shard_file) options.on_shard_file(shard_file_);
    nvme_ =
        std::make_unique<NvmeStore>(device, shard_file_, file->key, file->shards, NvmeOptions{});
  }
  loader.finish();
}

}  // namespace zi
