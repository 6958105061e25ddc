#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "backend/cuda/cuda_sample_batch.h"
#include "zero_infer/buffer.h"
#include "zero_infer/device.h"
#include "zero_infer/logit_changes.h"
#include "zero_infer/ops.h"

namespace zi {

/// Where rows of a kind stand among a batch's params.
struct RowOrder {
  int drawn = 0;           // the first ones are drawn at random
  int first_reported = 0;  // these report their best ids: some that are drawn, and others
  int reported = 0;
};

/// Brings what the host knows of rows to the device: their parameters, the ids of their histories
/// as bitmaps, and copies of their logits where bias or penalties for new tokens change some.
class SamplerInputs {
 public:
  /// Rows at once.
  static constexpr std::size_t kMostRows = 512;

  /// `scratch` holds the copies.
  SamplerInputs(Device& device, std::span<std::byte> scratch);

  /// How many of the rows, from the first on, there is memory for at once; 0 where the vocabulary
  /// is too large for a single one.
  std::size_t room_for(std::span<const SampleRow> rows, std::size_t vocabulary) const;

  /// Enqueues the copies of what `rows` (at most room_for them) need, and says in `batch` where it
  /// will lie until the next upload.
  RowOrder upload(std::span<const SampleRow> rows, SampleBatch& batch, Stream& stream);

 private:
  static constexpr std::size_t kSlots = 4;

  /// Pinned memory that a copy to the device may still be reading.
  struct Slot {
    Buffer memory;
    std::unique_ptr<Event> copied;
  };
  template <typename Entry, typename Launch>
  class List;

  Slot& free_slot();
  RowOrder write_params(std::span<const SampleRow> rows, SampleParams* params);
  void upload_bits(std::span<const SampleRow> rows, std::size_t vocabulary, Slot& slot,
                   std::size_t used, Stream& stream);
  void change_copies(std::span<const SampleRow> rows, const SampleBatch& batch, Stream& stream);

  std::byte* params() const;
  std::byte* lists() const;
  std::uint32_t* bitmaps() const;

  std::array<Slot, kSlots> slots_;
  std::size_t next_ = 0;
  Buffer memory_;
  std::span<std::byte> scratch_;
  std::array<std::int32_t, kMostRows> places_{};  // of each row among the params
  LogitChanges changes_;
};

}  // namespace zi
