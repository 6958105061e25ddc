#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "zero_infer/device.h"
#include "zero_infer/peer_exchange.h"

namespace zi {

/// Collectives on device memory, enqueued on a stream. Every rank must enqueue the same calls in
/// the same order, on one stream. Errors are CommError: of the call itself, at the stream's
/// synchronize (CPU), or from `check` (GPU, where a lost peer leaves the stream waiting).
class Communicator {
 public:
  virtual ~Communicator() = default;

  /// Collective. recv (world, bytes): the rank's own `bytes` at `send` to every rank. `send` may be
  /// recv + rank * bytes (in place). Any size, above 2 GiB included; world * bytes are received.
  virtual void all_gather(const void* send, void* recv, std::size_t bytes, Stream& stream) = 0;

  /// Collective. send (world, bytes) and recv (world, bytes): block r goes to rank r. Not in place.
  virtual void all_to_all(const void* send, void* recv, std::size_t bytes, Stream& stream) = 0;

  /// Collective, main thread: device memory that all_gather is fastest on, aligned as the device's.
  /// Every rank asks for the same size, in the same order among its collective calls, and must then
  /// gather at the same offset of it. Call it alone in World::all_or_none, because one rank may be
  /// refused what the others get. Release it before the communicator, when no enqueued work uses
  /// it, in the same order on all ranks.
  virtual Buffer allocate(Device& device, std::size_t bytes) { return device.allocate(bytes); }

  /// Collective, main thread: an exchange through `bytes` of each rank's memory, into which the
  /// devices of all ranks store. Null on all ranks where they cannot: products that stay are then
  /// exchanged by the calls above. Release it before the communicator, on all ranks.
  virtual std::unique_ptr<PeerExchange> make_peer_exchange(Device&, std::size_t) { return nullptr; }

  /// Bytes that this rank has received from ranks of other hosts in these calls, since the start.
  /// Complete for calls whose stream was waited for. Any thread.
  virtual std::uint64_t network_bytes() const { return 0; }

  /// Throws CommError if a failure has been noticed. Any thread, at any time.
  virtual void check() {}
};

}  // namespace zi
