#pragma once

#include <cstddef>
#include <cstdint>

#include "offload/unit_weights.h"
#include "zero_infer/device.h"
#include "zero_infer/dtype.h"
#include "zero_infer/model.h"
#include "zero_infer/ops.h"

namespace zi {

/// Enqueues the products of a block, one after the other, for a trial at the start: of `rows` rows,
/// in memory of the activations of a pass of as many (the product, its inputs, what is made of it),
/// whatever that holds. `own_alone`: this rank's block of each matrix, as a matrix by itself.
void enqueue_products(Ops& ops, const Model& model, DType compute_dtype, const UnitWeights& weights,
                      bool own_alone, std::int64_t rows, std::byte* memory, Stream& stream);

}  // namespace zi
