#pragma once

#include <cstddef>

#include "zero_infer/device.h"

namespace zi {

/// Collectives on device memory, enqueued on a stream. Every rank must enqueue the same calls in
/// the same order, on one stream. Errors surface at the stream's synchronize as CommError.
class Communicator {
 public:
  virtual ~Communicator() = default;

  /// Collective. recv (world, bytes): the rank's own `bytes` at `send` to every rank. `send` may be
  /// recv + rank * bytes (in place). Any size, above 2 GiB included; world * bytes are received.
  virtual void all_gather(const void* send, void* recv, std::size_t bytes, Stream& stream) = 0;

  /// Collective. send (world, bytes) and recv (world, bytes): block r goes to rank r. Not in place.
  virtual void all_to_all(const void* send, void* recv, std::size_t bytes, Stream& stream) = 0;
};

}  // namespace zi
