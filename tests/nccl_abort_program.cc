// Loses rank 1 in the midst of gathers between GPUs, while the others go on with theirs; the job
// must end within seconds, and the exit status of mpirun is the result.
//   exit   the process is gone, without a word to MPI or NCCL: status 3
//   throw  an exception leaves the communicator and the World: status 1
// With fewer GPUs than ranks the status is 77.
//   mpirun -np N nccl_abort_program exit|throw [plain|copy-engine]

#include <cstdlib>
#include <cstring>

#include "zero_infer/cuda_backend.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"
#include "zero_infer/nccl.h"
#include "zero_infer/world.h"

namespace {

constexpr int kNoGpus = 77;
constexpr std::size_t kBytes = std::size_t{32} << 20;

void gather_for_ever(zi::World& world, bool exits, zi::Gather gather) {
  const auto device = zi::make_cuda_device(world.local_rank());
  const auto communicator = zi::make_nccl_communicator(
      world, *device, kBytes,
      [&world](const std::string& message) {
        zi::log_error(message);
        world.abort(1);
      },
      gather);
  const auto ranks = static_cast<std::size_t>(world.size());
  const zi::Buffer blocks = communicator->allocate(*device, ranks * kBytes);
  const auto stream = device->make_stream("gathers");
  std::byte* const own = blocks.data() + static_cast<std::size_t>(world.rank()) * kBytes;
  for (int i = 0;; ++i) {
    communicator->all_gather(own, blocks.data(), kBytes, *stream);
    if (i % 8 == 7) stream->synchronize();
    communicator->check();
    if (i < 100 || world.rank() != 1) continue;
    if (exits) std::_Exit(3);
    throw zi::IoError("as asked");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const bool exits = std::strcmp(argv[1], "exit") == 0;
  const bool engines = argc > 2 && std::strcmp(argv[2], "copy-engine") == 0;
  try {
    zi::World world(&argc, &argv);
    if (zi::cuda_device_count() < world.local_size()) return kNoGpus;
    gather_for_ever(world, exits, engines ? zi::Gather::kCopyEngine : zi::Gather::kPlain);
  } catch (const zi::PeerError&) {
    return 2;  // all ranks leave together: one of them says why
  } catch (const zi::Error& error) {
    zi::log_error(error.what());
    return 2;
  }
  return 0;
}
