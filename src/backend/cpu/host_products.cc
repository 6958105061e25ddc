#include <algorithm>
#include <chrono>

#include "backend/cpu/cpu_matmul.h"
#include "backend/host/numa_node.h"
#include "backend/host/thread_pool.h"
#include "zero_infer/backend.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// From one product of a block to the next the device needs less than this.
constexpr std::chrono::microseconds kLook{500};

class PoolProducts final : public HostProducts {
 public:
  PoolProducts(int threads, int numa_node) : pool_(threads, numa_node, kLook), matmul_(pool_) {}

  void run(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w, float* y) override {
    for (std::size_t i = 0; i < w.size(); ++i) {
      matmul_.run(a, a_dtype, rows, w[i], y + w.first(i), w.padded_rows());
    }
  }

 private:
  ThreadPool pool_;
  CpuMatmul matmul_;
};

}  // namespace

std::unique_ptr<HostProducts> make_host_products(int threads, int numa_node) {
  if (threads < 1) throw ConfigError("products of the host need at least one thread");
  return std::make_unique<PoolProducts>(threads, numa_node);
}

int host_product_threads(int most, int numa_node) {
  const int cores = cores_of_node(numa_node);
  return std::max(1, cores > 0 ? std::min(most, cores) : most);
}

}  // namespace zi
