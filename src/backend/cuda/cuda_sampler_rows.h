#pragma once

#include <cuda_runtime.h>

#include "backend/cuda/cuda_sample_batch.h"

namespace zi {

/// Blocks that finish_rows may have at once on the current device; fewer than two: one for each
/// row.
int blocks_at_once();

/// Draws an id for each of the first `drawn` rows of the batch, and writes the best ids, up to
/// kListedIds, of `reported` rows from `first_reported` on. Rows that are not valid are not drawn.
/// With several blocks a row there is one of batch.works for each of these rows, cleared up to
/// kClearedBytes, and there are no more blocks than blocks_at_once.
void finish_rows(const SampleBatch& batch, int drawn, int first_reported, int reported,
                 cudaStream_t stream);

}  // namespace zi
