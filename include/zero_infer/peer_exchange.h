#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "zero_infer/device.h"
#include "zero_infer/dtype.h"

namespace zi {

/// The two exchanges of a product whose matrix stays, between devices that reach each other's
/// memory: kernels in the stream of the computation store into the memory of every rank, and wait
/// until the other ranks have stored into theirs. No other stream takes part, and no event: passes
/// can be recorded as a Graph, by some ranks and not by others.
///
/// Every rank must enqueue the same calls with the same sizes in the same order: a gather of
/// inputs, then a return of results, and so on in turn. Their turns are what keeps memory from
/// being overwritten while it is read: inputs are gathered again when all ranks have returned the
/// results made of them, and results come again when all ranks have gathered anew. Where all ranks
/// have waited on the host for the end of what they had enqueued, any call may be next. The two use
/// parts of the memory of their own, which are the same in all calls. What a gather leaves is valid
/// until the next one.
class PeerExchange {
 public:
  virtual ~PeerExchange() = default;

  /// This rank's memory, into which others store; aligned as the device's.
  virtual std::byte* memory() = 0;
  virtual std::size_t bytes() const = 0;

  /// Collective. memory() + offset (world, bytes): `bytes` at `inputs` of every rank. The offset is
  /// a multiple of 16.
  virtual void gather_inputs(const void* inputs, std::size_t bytes, std::size_t offset,
                             Stream& stream) = 0;

  /// Collective. parts (world, rows, sum of slices) of `type` are this rank's columns for the rows
  /// of each rank; `results` (rows, world * sum of slices) gets those of all ranks for its own
  /// rows, put side by side as Ops::interleave does. They are received at memory() + offset, which
  /// is as large as `parts`; the offset is a multiple of 16.
  virtual void return_results(const void* parts, DType type, std::int64_t rows,
                              std::span<const std::int64_t> slices, std::size_t offset,
                              void* results, Stream& stream) = 0;
};

}  // namespace zi
