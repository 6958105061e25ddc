#pragma once

#include <cuda_runtime.h>

#include "backend/cuda/cuda_sample_batch.h"

namespace zi {

/// Draws an id for each of the first `count` rows of the batch. Rows that are not valid are passed
/// over.
void draw_rows(const SampleBatch& batch, int count, cudaStream_t stream);

/// Writes the best ids, up to kListedIds, of `count` of the batch's rows, from `first` on.
void report_rows(const SampleBatch& batch, int first, int count, cudaStream_t stream);

}  // namespace zi
