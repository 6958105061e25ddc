#pragma once

#include <cstddef>

#include "zero_infer/dtype.h"
#include "zero_infer/model.h"
#include "zero_infer/partition_layout.h"
#include "zero_infer/weight_format.h"

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

}  // namespace zi
