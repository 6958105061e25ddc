#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>

#include "zero_infer/communicator.h"
#include "zero_infer/device.h"
#include "zero_infer/ops.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// What row exchanges received from the other ranks.
struct Exchanged {
  std::size_t trips = 0;  // collective calls
  std::size_t bytes = 0;

  Exchanged& operator+=(const Exchanged& other);
};

/// Products with matrices that stay where they are, cut by rows over the ranks: the inputs of all
/// ranks are gathered, each rank multiplies its own rows of the matrix for all of them, and the
/// results go back to the rank that asked, which puts the columns side by side. Instead of a matrix
/// its inputs and outputs travel. It goes in rounds of some rows of each rank, so that the memory
/// that it takes is bounded. For worlds of many.
class RowExchange {
 public:
  /// Bytes of one row of a product.
  struct Row {
    std::size_t input = 0;
    std::size_t result = 0;  // of the columns that one rank multiplies
  };
  /// Device bytes for rounds of `rows` of each rank; 0 in a world of one.
  static std::size_t workspace_bytes(const Row& row, std::int64_t rows, int world);
  /// The rows of a round in so much memory, at least 1.
  static std::int64_t round_rows(const Row& row, std::size_t bytes, int world);
  /// What a product of `most` rows receives.
  static Exchanged cost(const Row& row, std::int64_t most, std::size_t bytes, int world);

  /// `workspace` holds `bytes` of device memory. The calls of `communicator` go to `exchange`, the
  /// stream of all of its calls.
  RowExchange(Device& device, Ops& ops, Communicator& communicator, int world, std::byte* workspace,
              std::size_t bytes, Stream& exchange);

  /// One product. `inputs` (most, row.input bytes) and `results` (most, world * sum of slices) have
  /// room for `most` rows, of which this rank uses the first ones; what the others hold is of no
  /// matter.
  struct Product {
    const void* inputs;
    std::size_t input_row;  // bytes
    void* results;
    DType type;                            // of the results
    std::span<const std::int64_t> slices;  // columns of each matrix that a rank multiplies
  };
  /// Enqueues the own part: results (rows, sum of slices) of inputs (rows, input_row bytes).
  using Multiply =
      std::function<void(const std::byte* inputs, std::int64_t rows, std::byte* results)>;
  /// Collective. `most` is the largest row count of any rank. Throws Error where its memory is too
  /// small for one row.
  void run(const Product& product, std::int64_t most, const Multiply& multiply, Stream& compute);

  /// Since the last call.
  Exchanged take_exchanged() { return std::exchange(received_, {}); }

 private:
  Ops* ops_;
  Communicator* communicator_;
  Stream* exchange_;
  int world_;
  std::byte* workspace_;
  std::size_t bytes_;
  Exchanged received_;
  std::unique_ptr<Event> computed_;
  std::unique_ptr<Event> exchanged_;
};

}  // namespace zi
