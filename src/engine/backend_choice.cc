#include "engine/backend_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "zero_infer/backend.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"
#ifdef ZI_HAVE_CUDA
#include "zero_infer/cuda_backend.h"
#include "zero_infer/model.h"
#include "zero_infer/nccl.h"
#include "zero_infer/partition_layout.h"
#endif

namespace zi {
namespace {

/// One thread copies about 10 GB/s, and a product streams about as much on each core. Where there
/// are many cores, a few of them copy, so that copies keep up with compute.
constexpr int kCoresOfCopier = 4;
constexpr int kMostCopiers = 4;

/// Collective.
std::shared_ptr<RankGroup> make_partition(World& world, const RunConfig& config) {
  // Else some ranks would be in other collective calls than the rest.
  const std::vector<PartitionWithin> all = world.all_gather(config.partition_within);
  world.all_or_none([&] {
    if (config.partition_within == all.front()) return;
    throw ConfigError(fmt::format(
        "--partition-within must be the same on every rank: rank 0 has {}, rank {} on {} has {}",
        name_of(all.front()), world.rank(), world.host(), name_of(config.partition_within)));
  });
  const RankHosts& hosts = world.hosts();
  if (config.partition_within == PartitionWithin::kJob || hosts.count() == 1) {
    return {std::shared_ptr<RankGroup>(), &world};  // its owner's
  }
  return world.split(hosts.host_of(world.rank()));
}

Backend make_cpu_backend(World& world, const RunConfig& config) {
  Backend backend;
  backend.partition = make_partition(world, config);
  const int ranks = backend.partition->size();
  world.all_or_none([&] {
    const int threads = threads_per_rank(world.local_size());
    const bool travels = config.cpu_offload || config.nvme_offload_path || ranks > 1;
    const int copiers = travels ? std::clamp(threads / kCoresOfCopier, 1, kMostCopiers) : 1;
    // With few cores none can be set aside: copies and products share them.
    const int products = travels && threads >= kCoresOfCopier ? threads - copiers : threads;
    backend.name = "cpu";
    backend.device = make_cpu_device(copiers);
    backend.ops = make_cpu_ops(products);
  });
  backend.communicator = make_communicator(world, *backend.partition, backend, config);
  return backend;
}

#ifdef ZI_HAVE_CUDA

/// What is gathered at a time while the ways of gathering are compared, where the model's shape
/// cannot be read: about a shard of a large model's block.
constexpr std::size_t kTypicalShardBytes = std::size_t{256} << 20;
/// Smaller shards are bound by the start of a gather, which kernels do sooner: no trial.
constexpr std::size_t kLeastTrialBytes = std::size_t{4} << 20;

/// Collective. A rank's shard of a block of the model, the same on every rank. If something is
/// wrong with the model, the engine will say so.
std::size_t typical_shard_bytes(RankGroup& partition, const RunConfig& config) {
  std::size_t bytes = kTypicalShardBytes;
  if (partition.rank() == 0) {
    try {
      const auto model = make_model(ModelConfig::load(resolve_model(config.model)), false);
      bytes = PartitionLayout(model->spec().blocks.front(), DType::kBFloat16, partition.size())
                  .shard_bytes();
    } catch (const Error&) {
    }
  }
  const std::string wire =
      partition.broadcast(std::string(reinterpret_cast<const char*>(&bytes), sizeof(bytes)), 0);
  std::memcpy(&bytes, wire.data(), sizeof(bytes));
  return bytes;
}

/// Collective. The index of this rank's GPU: all ranks of a host see all of its GPUs, or each sees
/// the one that a scheduler has given it. Nothing when some rank has none; `why` then says why, and
/// `loud` whether the user should be told.
std::optional<int> choose_gpu(World& world, std::string& why, bool& loud) {
  struct Mine {
    int gpus;
    int local_size;
    int loud;
    int given;  // CUDA_VISIBLE_DEVICES is set
  };
  std::string reason;
  bool surprise = false;
  int count = 0;
  world.all_or_none([&] { count = cuda_device_count(&reason, &surprise); });
  const Mine mine{count, world.local_size(), surprise ? 1 : 0,
                  std::getenv("CUDA_VISIBLE_DEVICES") != nullptr ? 1 : 0};
  const std::vector<Mine> all = world.all_gather(mine);
  const auto lacks = [](const Mine& m) { return m.gpus < m.local_size; };
  const auto found = std::ranges::find_if(all, lacks);
  if (found == all.end()) return world.local_rank();
  const bool one_each =
      std::ranges::all_of(all, [](const Mine& m) { return m.gpus == 1 && m.given != 0; });
  if (one_each) return 0;  // the communicator checks that they are different ones
  const auto rank = static_cast<int>(found - all.begin());
  reason = world.broadcast(reason, rank);
  why = found->gpus > 0 ? fmt::format("the host of rank {} has {} GPUs for {} ranks", rank,
                                      found->gpus, found->local_size)
                        : fmt::format("rank {}: {}", rank, reason);
  loud = found->gpus > 0 || found->loud != 0;
  return std::nullopt;
}

Backend make_cuda_backend(World& world, const RunConfig& config, int gpu) {
  Backend backend;
  backend.partition = make_partition(world, config);
  world.all_or_none([&] {
    backend.name = "cuda";
    backend.device = make_cuda_device(gpu);
    backend.ops = make_cuda_ops(*backend.device);
    const std::string note = cuda_build_note();
    if (world.rank() == 0 && !note.empty()) log_warning(note);
  });
  backend.communicator = make_communicator(world, *backend.partition, backend, config);
  return backend;
}

/// The GPUs that this many ranks would have. The ops take memory of their own, as in a run.
DeviceSurvey survey_gpus(int ranks, int gpus) {
  DeviceSurvey survey;
  survey.backend = "cuda";
  survey.gpus = gpus;
  for (int i = 0; i < ranks; ++i) {
    const auto device = make_cuda_device(i);
    const auto ops = make_cuda_ops(*device);
    const std::size_t free = device->memory().free_bytes;
    survey.device = device->name();
    survey.device_free = i == 0 ? free : std::min(survey.device_free, free);
    survey.host_free = device->host_memory().free_bytes;
  }
  return survey;
}

#endif

}  // namespace

std::unique_ptr<Communicator> make_communicator([[maybe_unused]] World& world, RankGroup& ranks,
                                                [[maybe_unused]] const Backend& backend,
                                                [[maybe_unused]] const RunConfig& config) {
  if (ranks.size() == 1) return nullptr;
#ifdef ZI_HAVE_CUDA
  if (!backend.device->is_host()) {
    // This runs on the communicator's own thread: nobody else may be awake to report it.
    const auto end_job = [&world](const std::string& message) {
      log_error(message);
      world.abort(1);
    };
    const std::size_t bytes = typical_shard_bytes(ranks, config);
    return make_nccl_communicator(ranks, *backend.device, bytes, end_job,
                                  bytes < kLeastTrialBytes ? Gather::kPlain : Gather::kFastest);
  }
#endif
  return ranks.make_cpu_communicator();
}

Backend make_backend(World& world, const RunConfig& config) {
#ifdef ZI_HAVE_CUDA
  if (config.backend == BackendChoice::kCpu) return make_cpu_backend(world, config);
  std::string why;
  bool loud = false;
  const std::optional<int> gpu = choose_gpu(world, why, loud);
  if (gpu) return make_cuda_backend(world, config, *gpu);
  world.all_or_none([&] {
    if (config.backend == BackendChoice::kCuda) {
      throw ConfigError(fmt::format(
          "--backend cuda needs a GPU for each rank: {}; use --backend cpu or fewer ranks", why));
    }
  });
  if (world.rank() == 0 && loud) {
    log_warning(fmt::format("the CPU backend is used, not the GPU ({})", why));
  } else if (world.rank() == 0) {
    log_verbose(fmt::format("the CPU backend is used ({})", why));
  }
#else
  world.all_or_none([&] {
    if (config.backend == BackendChoice::kCuda) {
      throw ConfigError(
          "this build has no CUDA backend: nvcc and NCCL were not found when it was built; use "
          "--backend cpu or auto");
    }
  });
#endif
  return make_cpu_backend(world, config);
}

DeviceSurvey survey_devices(BackendChoice choice, int ranks_per_host) {
#ifdef ZI_HAVE_CUDA
  if (choice != BackendChoice::kCpu) {
    std::string why;
    const int gpus = cuda_device_count(&why);
    if (gpus > 0) return survey_gpus(std::min(gpus, ranks_per_host), gpus);
    if (choice == BackendChoice::kCuda) {
      throw ConfigError(fmt::format(
          "--backend cuda needs a GPU: {}; describe one with --gpus-like, or use --backend cpu",
          why));
    }
  }
#else
  (void)ranks_per_host;
  if (choice == BackendChoice::kCuda) {
    throw ConfigError(
        "this build has no CUDA backend: describe a GPU with --gpus-like, or use --backend cpu");
  }
#endif
  const auto device = make_cpu_device();
  DeviceSurvey survey;
  survey.backend = "cpu";
  survey.device = device->name();
  survey.host_free = device->host_memory().free_bytes;
  return survey;
}

}  // namespace zi
