#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"
#ifdef ZI_HAVE_CUDA
#include "zero_infer/cuda_backend.h"
#include "zero_infer/nccl.h"
#endif

namespace zi {
namespace {

Backend make_cpu_backend(World& world) {
  Backend backend;
  world.all_or_none([&] {
    backend.name = "cpu";
    backend.device = make_cpu_device();
    backend.ops = make_cpu_ops(threads_per_rank(world.local_size()));
  });
  if (world.size() > 1) backend.communicator = world.make_cpu_communicator();
  return backend;
}

#ifdef ZI_HAVE_CUDA

/// What is gathered at a time while the ways of gathering are compared: about a shard of a large
/// model's block.
constexpr std::size_t kTypicalShardBytes = std::size_t{256} << 20;

/// Collective. Whether every rank has a GPU of its own, and why not.
bool every_rank_has_gpu(World& world, std::string& why) {
  struct Mine {
    int gpus;
    int local_size;
  };
  const Mine mine{cuda_device_count(&why), world.local_size()};
  std::vector<Mine> all(static_cast<std::size_t>(world.size()));
  world.all_gather(&mine, all.data(), sizeof(Mine));
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (all[r].gpus >= all[r].local_size) continue;
    if (all[r].gpus > 0) {
      why = fmt::format("the host of rank {} has {} GPUs for {} ranks", r, all[r].gpus,
                        all[r].local_size);
    } else if (world.size() > 1) {
      why = fmt::format("rank {} has no GPU", r);
    }
    return false;
  }
  return true;
}

Backend make_cuda_backend(World& world) {
  Backend backend;
  world.all_or_none([&] {
    backend.name = "cuda";
    backend.device_is_host = false;
    backend.device = make_cuda_device(world.local_rank());
    backend.ops = make_cuda_ops(*backend.device);
  });
  if (world.size() > 1) {
    // From the communicator's own thread: nobody else may be awake to tell.
    const auto end_job = [&world](const std::string& message) {
      log_error(message);
      world.abort(1);
    };
    backend.communicator =
        make_nccl_communicator(world, *backend.device, kTypicalShardBytes, end_job);
  }
  return backend;
}

#endif

}  // namespace

Backend make_backend(World& world, const RunConfig& config) {
#ifdef ZI_HAVE_CUDA
  if (config.backend == BackendChoice::kCpu) return make_cpu_backend(world);
  std::string why;
  if (every_rank_has_gpu(world, why)) return make_cuda_backend(world);
  world.all_or_none([&] {
    if (config.backend == BackendChoice::kCuda) {
      throw ConfigError(fmt::format(
          "--backend cuda needs a GPU for each rank: {}; use --backend cpu or fewer ranks", why));
    }
  });
  if (world.rank() == 0) log_verbose(fmt::format("no CUDA ({}): the CPU backend is used", why));
#else
  world.all_or_none([&] {
    if (config.backend == BackendChoice::kCuda) {
      throw ConfigError(
          "this build has no CUDA backend: nvcc and NCCL were not found when it was made; use "
          "--backend cpu or leave it at auto");
    }
  });
#endif
  return make_cpu_backend(world);
}

}  // namespace zi
