#include "ops_fixture.h"
#include "zero_infer/cuda_backend.h"

namespace zi {

std::vector<OpsBackend> backends() {
  std::string why;
  const bool there = cuda_device_count(&why) > 0;
  return {{"cuda", false, [] { return make_cuda_device(0); }, make_cuda_ops,
           there ? "" : "no GPU to test on: " + why}};
}

}  // namespace zi
