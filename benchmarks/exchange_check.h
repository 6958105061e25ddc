#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/row_exchange.h"
#include "zero_infer/device.h"
#include "zero_infer/rank_group.h"

namespace zi {

/// Whether exchanges of bfloat16 inputs and float32 results bring what they should: some of them,
/// one after the other, each with numbers of its own, so that what an earlier one left cannot pass
/// for what a later one brings, and a kernel that comes too early meets what is still read.
class ExchangeCheck {
 public:
  /// Of `rows` of each rank: `hidden` inputs, and `columns` results of which each rank makes a
  /// part.
  ExchangeCheck(RankGroup& ranks, Device& device, std::int64_t rows, std::int64_t hidden,
                std::int64_t columns);

  /// Enqueues the exchanges; no other work and no memory, so that a graph may hold them.
  void enqueue(RowExchange& exchange, Stream& compute);
  /// Collective: gives the next numbers, calls `enqueued`, which is to enqueue them (by a graph, or
  /// directly), and throws Error with `way` on all ranks where one has got others than it should.
  void run(const std::string& way, const std::function<void()>& enqueued, Stream& compute);

 private:
  using Number = std::uint16_t;
  /// Memory of the device, and what a host reads or writes there.
  struct Numbers {
    Buffer device;
    std::vector<Number> host;
    std::size_t each = 0;  // of one exchange

    std::byte* at(int exchange) const;
    std::size_t bytes() const { return each * sizeof(Number); }
  };
  static Numbers make(Device& device, std::size_t each);
  /// Input or part i of a rank.
  Number number(bool input, int rank, int exchange, std::size_t i) const;
  void compare(const std::string& way) const;

  RankGroup* ranks_;
  Device* device_;
  std::int64_t rows_;
  std::size_t hidden_, part_;  // numbers of a row
  std::int64_t slice_;
  std::uint64_t runs_ = 0;
  Numbers inputs_, gathered_, parts_, results_;
};

}  // namespace zi
