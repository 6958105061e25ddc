#include "engine/row_exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {

Exchanged& Exchanged::operator+=(const Exchanged& other) {
  trips += other.trips;
  bytes += other.bytes;
  return *this;
}

RowExchange::Room RowExchange::Room::operator|(const Room& other) const {
  return {std::max(inputs, other.inputs), std::max(results, other.results)};
}

RowExchange::Room RowExchange::room(const Row& row, std::int64_t rows, int world) {
  if (world == 1) return {};
  const std::size_t all = static_cast<std::size_t>(rows) * static_cast<std::size_t>(world);
  return {align_up(all * row.input, kMatrixAlignment),
          align_up(all * row.result, kMatrixAlignment)};
}

std::int64_t RowExchange::round_rows(const Row& row, const Room& room, int world) {
  const auto ranks = static_cast<std::size_t>(world);
  const std::size_t rows =
      std::min(room.inputs / (ranks * row.input), room.results / (ranks * row.result));
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(rows));
}

Exchanged RowExchange::cost(const Row& row, std::int64_t most, const Room& room, int world) {
  if (world == 1 || most == 0) return {};
  const auto peers = static_cast<std::size_t>(world - 1);
  return {2 * static_cast<std::size_t>(ceil_div(most, round_rows(row, room, world))),
          peers * static_cast<std::size_t>(most) * (row.input + row.result)};
}

RowExchange::RowExchange(Device& device, Ops& ops, Communicator& communicator, PeerExchange* peers,
                         int world, std::byte* memory, const Room& room, Stream& exchange)
    : ops_(&ops),
      communicator_(&communicator),
      peers_(peers),
      exchange_(&exchange),
      world_(world),
      memory_(peers == nullptr ? memory : peers->memory()),
      room_(room),
      computed_(device.make_event()),
      exchanged_(device.make_event()) {
  if (peers != nullptr && room.bytes() > peers->bytes()) {
    throw Error(fmt::format("an exchange takes {} bytes, and peers share {}", room.bytes(),
                            peers->bytes()));
  }
}

void RowExchange::run(const Product& product, std::int64_t most, const Multiply& multiply,
                      Stream& compute) {
  if (most == 0) return;
  const std::int64_t columns =
      std::accumulate(product.slices.begin(), product.slices.end(), std::int64_t{0});
  const Row row{product.input_row, static_cast<std::size_t>(columns) * size_of(product.type)};
  const std::int64_t rows = std::min(most, round_rows(row, room_, world_));
  const Room needed = room(row, rows, world_);
  if (needed.inputs > room_.inputs || needed.results > room_.results) {
    throw Error(
        fmt::format("an exchange of {} rows needs {} bytes for inputs and {} for results, "
                    "and has {} and {}",
                    rows, needed.inputs, needed.results, room_.inputs, room_.results));
  }
  received_ += cost(row, most, room_, world_);
  const auto* inputs = static_cast<const std::byte*>(product.inputs);
  auto* results = static_cast<std::byte*>(product.results);
  for (std::int64_t begin = 0; begin < most; begin += rows) {
    const Round round{inputs, std::min(rows, most - begin), results};
    if (peers_ != nullptr) {
      run_by_peers(product, row, round, multiply, compute);
    } else {
      run_by_communicator(product, row, round, multiply, compute);
    }
    inputs += static_cast<std::size_t>(round.rows) * row.input;
    results += static_cast<std::size_t>(round.rows * world_) * row.result;
  }
}

void RowExchange::run_by_peers(const Product& product, const Row& row, const Round& round,
                               const Multiply& multiply, Stream& compute) {
  peers_->gather_inputs(round.inputs, static_cast<std::size_t>(round.rows) * row.input, 0, compute);
  multiply(gathered(), round.rows * world_, own());
  peers_->return_results(own(), product.type, round.rows, product.slices, room_.inputs,
                         round.results, compute);
}

void RowExchange::run_by_communicator(const Product& product, const Row& row, const Round& round,
                                      const Multiply& multiply, Stream& compute) {
  const auto rows = static_cast<std::size_t>(round.rows);
  compute.record(*computed_);
  exchange_->wait(*computed_);  // the inputs are complete, the last round's buffers are free
  communicator_->all_gather(round.inputs, gathered(), rows * row.input, *exchange_);
  exchange_->record(*exchanged_);

  compute.wait(*exchanged_);
  multiply(gathered(), round.rows * world_, own());
  compute.record(*computed_);

  exchange_->wait(*computed_);
  communicator_->all_to_all(own(), received(), rows * row.result, *exchange_);
  exchange_->record(*exchanged_);

  compute.wait(*exchanged_);
  ops_->interleave(received(), product.type, world_, round.rows, product.slices, round.results,
                   compute);
}

}  // namespace zi
