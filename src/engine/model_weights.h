#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/memory_plan.h"
#include "offload/nvme_store.h"
#include "offload/resident_stores.h"
#include "offload/shard_reader.h"
#include "zero_infer/communicator.h"
#include "zero_infer/device.h"
#include "zero_infer/ops.h"
#include "zero_infer/weight_source.h"

namespace zi {

/// Is told how many bytes of a rank's are loaded, of how many; any thread may call it.
using LoadObserver = std::function<void(std::size_t done, std::size_t all)>;

/// The shard file of a rank: what it is for, and the units in it.
struct ShardFilePlan {
  ShardFileKey key;
  std::vector<int> units;
  std::vector<ShardSize> shards;  // of these
};

/// Where and how one rank loads.
struct LoadOptions {
  int rank = 0;
  int world = 1;
  int threads = 1;  // reads in flight
  bool show_progress = false;
  LoadObserver observer = {};
  std::string model_name;  // for shard files
  std::optional<std::filesystem::path> nvme_path;
  /// Ranks of other partitions may be writing the same shard file to the same disk: wait for them.
  bool others_write_alike = false;
  /// Is told of a shard file that was written now and is complete.
  std::function<void(const std::filesystem::path&)> on_shard_file = {};
};

/// The shard file that a rank needs by the plan; nothing where no block rests on NVMe. The first
/// call for a source may read, see WeightSource::identity.
std::optional<ShardFilePlan> plan_of_shard_file(const WeightSource& source, const MemoryPlan& plan,
                                                const LoadOptions& options);

/// This rank's weights in their tiers: shards of the blocks, of the head and of the embedding, and
/// the replicated vectors. Reads only its own rows from the source, straight to where they rest.
class ModelWeights {
 public:
  /// Loads everything; nothing is read from the source later on. Plan, device and ops outlive the
  /// weights.
  ModelWeights(Device& device, Ops& ops, const WeightSource& source, const ModelSpec& spec,
               const MemoryPlan& plan, const LoadOptions& options);

  /// Collective: brings the other ranks' shards of replicated blocks, and waits for them.
  void gather_replicas(Device& device, Communicator& communicator);

  /// Pinned bytes that loading takes in addition to the plan's, and gives back before passes begin.
  /// `by_rule`: all values follow a rule (dummy weights), so that a device makes them itself, if it
  /// can.
  static std::size_t loading_bytes(const MemoryPlan& plan, bool by_rule);

  /// The store of each block's tier.
  const std::vector<ShardStore*>& stores() const { return store_of_block_; }
  const std::byte* head_shard() const { return head_.data(); }
  /// By plan.embedding_layout(), where plan.embedding_tier says; the head's shard where it is that.
  const std::byte* embedding_shard() const {
    return embedding_.bytes() > 0 ? embedding_.data() : head_.data();
  }
  std::span<const float* const> block_vectors(int block) const {
    return block_vectors_[static_cast<std::size_t>(block)];
  }
  std::span<const float* const> model_vectors() const { return model_vectors_; }
  std::span<const float* const> head_vectors() const { return head_vectors_; }

  /// That loading took.
  double load_seconds() const { return load_seconds_; }
  /// The shard file of the NVMe tier; empty without one.
  const std::filesystem::path& shard_file() const { return shard_file_; }
  /// The NVMe store; null without one.
  const NvmeStore* nvme_store() const { return nvme_.get(); }

 private:
  void load_vectors(Device& device, const WeightSource& source, const ModelSpec& spec,
                    const MemoryPlan& plan, int threads);
  void load_shards(Device& device, Ops& ops, const WeightSource& source, const MemoryPlan& plan,
                   const LoadOptions& options);

  std::unique_ptr<DeviceStore> device_;
  std::unique_ptr<ReplicatedStore> replicated_;
  std::unique_ptr<HostStore> host_;
  std::unique_ptr<NvmeStore> nvme_;
  std::filesystem::path shard_file_;
  std::vector<ShardStore*> store_of_block_;
  Buffer head_;
  Buffer embedding_;  // empty: it is the head
  Buffer vectors_;
  std::vector<std::vector<const float*>> block_vectors_;
  std::vector<const float*> model_vectors_;
  std::vector<const float*> head_vectors_;
  double load_seconds_ = 0;
};

}  // namespace zi
