#pragma once

#include <array>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "offload/read_threads.h"
#include "offload/shard_reader.h"
#include "zero_infer/device.h"
#include "zero_infer/ops.h"
#include "zero_infer/partition_layout.h"
#include "zero_infer/weight_source.h"

namespace zi {

/// Brings one rank's shards from the source to where they rest, without a pause between them:
/// threads read the next pieces while this rank's earlier ones are copied and the pages of its
/// memory are taken. One thread calls it; what it is given must stay until `finish`.
class WeightLoader {
  static constexpr std::size_t kPieceBytes = std::size_t{8} << 20;
  static constexpr std::size_t kPieces = 8;

 public:
  /// Pinned until everything is loaded, where shards are sent to a device.
  static constexpr std::size_t kPinnedBytes = kPieces * kPieceBytes;

  struct Options {
    int rank = 0;
    int threads = 1;  // reads in flight
  };
  WeightLoader(Device& device, Ops& ops, const WeightSource& source, const Options& options,
               std::function<void(std::size_t)> progress);
  /// Drops what has not begun and waits for the rest.
  ~WeightLoader();
  WeightLoader(const WeightLoader&) = delete;
  WeightLoader& operator=(const WeightLoader&) = delete;

  /// Takes the pages of these parts of Device::allocate_for_loading's memory, in this order, while
  /// reads are running. Call it once.
  void take_pages_ahead(std::vector<std::span<std::byte>> parts);

  /// Whether a device makes values of this layout's formats itself, where they follow a rule:
  /// elements, and rows as this program packs them.
  static bool can_make(const PartitionLayout& layout);

  /// Begins to fill a shard in device memory. Values that follow a rule are made on the device, in
  /// formats that it can make.
  void load_to_device(const PartitionLayout& layout, std::byte* dst);
  /// Begins to fill a shard in host memory.
  void load_to_host(const PartitionLayout& layout, std::span<std::byte> dst);
  /// Waits until all of it is there; rethrows the first failure.
  void finish();

 private:
  /// On the way to a device: read into pinned memory, then copied.
  struct Piece {
    Buffer memory;
    std::unique_ptr<Event> copied;
    ReadThreads::Ticket read = 0;
    std::byte* dst = nullptr;
    std::size_t bytes = 0;  // 0: nothing is on the way
  };

  void make(const PartitionLayout& layout, std::byte* dst);
  void send(const PartitionLayout& layout, std::byte* dst);
  void copy(Piece& piece);

  Device* device_;
  Ops* ops_;
  const WeightSource* source_;
  Options options_;
  std::function<void(std::size_t)> progress_;
  std::array<Piece, kPieces> pieces_;  // a circle
  std::size_t next_ = 0;
  std::unique_ptr<Stream> stream_;  // goes before the pieces, after it has waited
  std::exception_ptr pages_failure_;
  ReadThreads reads_;
  std::jthread pages_;
};

}  // namespace zi
