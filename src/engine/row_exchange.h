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
#include "zero_infer/peer_exchange.h"

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
/// that it takes is bounded. By a Communicator, or where there is one by a PeerExchange, whose
/// kernels do in some microseconds what takes collective calls and changes of streams. For worlds
/// of many.
class RowExchange {
 public:
  /// Bytes of one row of a product.
  struct Row {
    std::size_t input = 0;
    std::size_t result = 0;  // of the columns that one rank multiplies
  };
  /// Device memory for what is on its way. All products use the same parts of it.
  struct Room {
    std::size_t inputs = 0;   // bytes, of all ranks
    std::size_t results = 0;  // bytes, of the own part; and again as received
    std::size_t bytes() const { return inputs + 2 * results; }
    /// Room for products of both.
    Room operator|(const Room& other) const;
  };
  /// For rounds of `rows` of each rank; none in a world of one.
  static Room room(const Row& row, std::int64_t rows, int world);
  /// The rows of a round, at least 1.
  static std::int64_t round_rows(const Row& row, const Room& room, int world);
  /// What a product of `most` rows receives.
  static Exchanged cost(const Row& row, std::int64_t most, const Room& room, int world);

  /// By `peers`, which have room.bytes(), in the stream of the products. Where they are null, by
  /// `communicator`, whose calls go to `exchange`, the stream of all of its calls; `memory` then
  /// holds room.bytes() of device memory.
  RowExchange(Device& device, Ops& ops, Communicator& communicator, PeerExchange* peers, int world,
              std::byte* memory, const Room& room, Stream& exchange);

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
  /// Counts what a graph that holds products exchanges again.
  void add_exchanged(const Exchanged& more) { received_ += more; }
  /// Whether its work is in the stream of the products alone, so that a graph may hold it.
  bool recordable() const { return peers_ != nullptr; }

 private:
  /// Rows of each rank, in one round.
  struct Round {
    const std::byte* inputs;
    std::int64_t rows;
    std::byte* results;
  };
  void run_by_communicator(const Product& product, const Row& row, const Round& round,
                           const Multiply& multiply, Stream& compute);
  void run_by_peers(const Product& product, const Row& row, const Round& round,
                    const Multiply& multiply, Stream& compute);
  std::byte* gathered() const { return memory_; }
  std::byte* received() const { return memory_ + room_.inputs; }
  std::byte* own() const { return memory_ + room_.inputs + room_.results; }

  Ops* ops_;
  Communicator* communicator_;
  PeerExchange* peers_;
  Stream* exchange_;
  int world_;
  std::byte* memory_;
  Room room_;
  Exchanged received_;
  std::unique_ptr<Event> computed_;
  std::unique_ptr<Event> exchanged_;
};

}  // namespace zi
