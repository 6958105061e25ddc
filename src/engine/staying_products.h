#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/memory_plan.h"
#include "engine/row_exchange.h"
#include "zero_infer/model.h"

namespace zi {

/// What travels for one row of each product of a block whose matrices stay, in order: one exchange
/// for each of them.
std::vector<RowExchange::Row> staying_rows(const Model& model, const PartitionLayout& block,
                                           DType compute_dtype);

/// Device memory for these exchanges: rounds of so many rows of each rank, or of what some MiB
/// hold; of one row at least.
RowExchange::Room staying_room(const MemoryPlan& plan, const Model& model, std::int64_t rows);

/// What one rank receives, in how many collective calls, in a pass of all blocks whose largest row
/// count of any rank is `most`.
Exchanged staying_cost(const MemoryPlan& plan, const Model& model, std::int64_t most);

}  // namespace zi
