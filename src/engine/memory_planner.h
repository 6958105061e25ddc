#pragma once

#include <cstddef>

#include "engine/memory_plan.h"
#include "zero_infer/dtype.h"
#include "zero_infer/model.h"
#include "zero_infer/run_config.h"

namespace zi {

/// What a plan is made from; equal on every rank (memory is the least of all ranks).
struct PlanInput {
  const Model* model = nullptr;
  MatrixFormats block_format;
  WeightFormat head_format;  // of head and embedding
  DType compute_dtype = DType::kBFloat16;
  int world = 1;
  int local_size = 1;           // the most ranks on one host: they share its memory
  bool device_is_host = true;   // the CPU backend: device memory comes out of the host's
  std::size_t device_free = 0;  // of one device; with device_is_host, unused
  std::size_t host_free = 0;    // of one host, for all of its ranks
};

/// Plans or refuses: throws MemoryError with the table and what to change when it does not fit.
MemoryPlan make_plan(const PlanInput& input, const RunConfig& config);

}  // namespace zi
