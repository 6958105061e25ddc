#include "engine/row_exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Bytes of the parts of the workspace.
struct RoundBytes {
  std::size_t inputs;   // (world, rows, input)
  std::size_t results;  // (world, rows, result): those of the own part, and again as received
};

RoundBytes round_bytes(const RowExchange::Row& row, std::int64_t rows, int world) {
  const std::size_t all = static_cast<std::size_t>(rows) * static_cast<std::size_t>(world);
  return {align_up(all * row.input, kMatrixAlignment),
          align_up(all * row.result, kMatrixAlignment)};
}

}  // namespace

Exchanged& Exchanged::operator+=(const Exchanged& other) {
  trips += other.trips;
  bytes += other.bytes;
  return *this;
}

std::size_t RowExchange::workspace_bytes(const Row& row, std::int64_t rows, int world) {
  if (world == 1) return 0;
  const RoundBytes b = round_bytes(row, rows, world);
  return b.inputs + 2 * b.results;
}

std::int64_t RowExchange::round_rows(const Row& row, std::size_t bytes, int world) {
  const std::size_t of_row = static_cast<std::size_t>(world) * (row.input + 2 * row.result);
  auto rows = std::max<std::int64_t>(1, static_cast<std::int64_t>(bytes / of_row));
  while (rows > 1 && workspace_bytes(row, rows, world) > bytes) --rows;  // what alignment takes
  return rows;
}

Exchanged RowExchange::cost(const Row& row, std::int64_t most, std::size_t bytes, int world) {
  if (world == 1 || most == 0) return {};
  const auto peers = static_cast<std::size_t>(world - 1);
  return {2 * static_cast<std::size_t>(ceil_div(most, round_rows(row, bytes, world))),
          peers * static_cast<std::size_t>(most) * (row.input + row.result)};
}

RowExchange::RowExchange(Device& device, Ops& ops, Communicator& communicator, int world,
                         std::byte* workspace, std::size_t bytes, Stream& exchange)
    : ops_(&ops),
      communicator_(&communicator),
      exchange_(&exchange),
      world_(world),
      workspace_(workspace),
      bytes_(bytes),
      computed_(device.make_event()),
      exchanged_(device.make_event()) {}

void RowExchange::run(const Product& product, std::int64_t most, const Multiply& multiply,
                      Stream& compute) {
  if (most == 0) return;
  const std::int64_t columns =
      std::accumulate(product.slices.begin(), product.slices.end(), std::int64_t{0});
  const Row row{product.input_row, static_cast<std::size_t>(columns) * size_of(product.type)};
  const std::int64_t round = std::min(most, round_rows(row, bytes_, world_));
  if (workspace_bytes(row, round, world_) > bytes_) {
    throw Error(fmt::format("an exchange of {} rows needs {} bytes, and has {}", round,
                            workspace_bytes(row, round, world_), bytes_));
  }
  const RoundBytes parts = round_bytes(row, round, world_);
  std::byte* const all_inputs = workspace_;
  std::byte* const own = all_inputs + parts.inputs;
  std::byte* const received = own + parts.results;
  const auto* inputs = static_cast<const std::byte*>(product.inputs);
  auto* results = static_cast<std::byte*>(product.results);
  received_ += cost(row, most, bytes_, world_);
  for (std::int64_t begin = 0; begin < most; begin += round) {
    const std::int64_t count = std::min(round, most - begin);
    const auto rows = static_cast<std::size_t>(count);

    compute.record(*computed_);
    exchange_->wait(*computed_);  // the inputs are complete, the last round's buffers are free
    communicator_->all_gather(inputs, all_inputs, rows * row.input, *exchange_);
    exchange_->record(*exchanged_);

    compute.wait(*exchanged_);
    multiply(all_inputs, count * world_, own);
    compute.record(*computed_);

    exchange_->wait(*computed_);
    communicator_->all_to_all(own, received, rows * row.result, *exchange_);
    exchange_->record(*exchanged_);

    compute.wait(*exchanged_);
    ops_->interleave(received, product.type, world_, count, product.slices, results, compute);
    inputs += rows * row.input;
    results += rows * row.result * static_cast<std::size_t>(world_);
  }
}

}  // namespace zi
