#include "engine/staying_products.h"

#include <algorithm>

namespace zi {
namespace {

/// For inputs and results on their way. More rows of a round read the weights less often: these
/// hold the rows of usual batches, in which weights are worth leaving where they are.
constexpr std::size_t kHostRounds = std::size_t{24} << 20;
constexpr std::size_t kDeviceRounds = std::size_t{256} << 20;

}  // namespace

std::vector<RowExchange::Row> staying_rows(const Model& model, const PartitionLayout& block,
                                           DType compute_dtype) {
  std::vector<RowExchange::Row> rows;
  for (const BlockProduct& product : model.products()) {
    const auto first = static_cast<std::size_t>(product.first);
    const PartitionLayout::Matrix& matrix = block.matrices().at(first);
    std::int64_t columns = 0;
    for (std::size_t i = first; i < first + static_cast<std::size_t>(product.count); ++i) {
      columns += block.matrices().at(i).rows_per_rank;
    }
    RowExchange::Row row{
        .input = static_cast<std::size_t>(matrix.tensor.shape[1]) * size_of(compute_dtype),
        .result = static_cast<std::size_t>(columns) * sizeof(float)};
    // As ExchangeOps does: see there.
    if (product.activated && matrix.tensor.shape[0] % block.world() == 0) {
      row.result = static_cast<std::size_t>(matrix.rows_per_rank) * size_of(compute_dtype);
    }
    rows.push_back(row);
  }
  return rows;
}

RowExchange::Room staying_room(const MemoryPlan& plan, const Model& model, std::int64_t rows) {
  const std::size_t most = plan.device_is_host ? kHostRounds : kDeviceRounds;
  const auto of = [&](std::int64_t count) {
    RowExchange::Room room;
    for (const PartitionLayout& block : plan.blocks) {
      for (const RowExchange::Row& row : staying_rows(model, block, plan.compute_dtype)) {
        room = room | RowExchange::room(row, count, block.world());
      }
    }
    return room;
  };
  while (rows > 1 && of(rows).bytes() > most) {
    const auto fit = static_cast<double>(most) / static_cast<double>(of(rows).bytes());
    rows = std::clamp<std::int64_t>(static_cast<std::int64_t>(fit * static_cast<double>(rows)), 1,
                                    rows - 1);
  }
  return of(rows);
}

Exchanged staying_cost(const MemoryPlan& plan, const Model& model, std::int64_t most) {
  Exchanged all;
  for (const PartitionLayout& block : plan.blocks) {
    for (const RowExchange::Row& row : staying_rows(model, block, plan.compute_dtype)) {
      all += RowExchange::cost(row, most, plan.product_exchange, block.world());
    }
  }
  return all;
}

}  // namespace zi
