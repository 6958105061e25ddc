#pragma once

#include <cstddef>
#include <vector>

#include "engine/memory_plan.h"
#include "engine/row_exchange.h"
#include "zero_infer/model.h"

namespace zi {

/// What travels for one row of each product of a block whose matrices stay, in order: one exchange
/// for each of them.
std::vector<RowExchange::Row> staying_rows(const Model& model, const PartitionLayout& block,
                                           DType compute_dtype);

/// Device memory for these exchanges: rounds of as many rows as a pass has, or what some MiB hold;
/// of one row at least.
RowExchange::Room staying_room(const MemoryPlan& plan, const Model& model);

/// What one rank receives, in how many collective calls, in a pass of all blocks whose largest row
/// count of any rank is `most`.
Exchanged staying_cost(const MemoryPlan& plan, const Model& model, std::int64_t most);

}  // namespace zi
