#include <algorithm>
#include <numeric>

#include "backend/cuda/cuda_sampler_inputs.h"
#include "backend/cuda/cuda_support.h"
#include "zero_infer/bytes.h"
#include "zero_infer/random.h"
#include "zero_infer/sampler.h"

namespace zi {
namespace {

constexpr int kBitThreads = 256;

constexpr std::size_t kStagingBytes = std::size_t{256} << 10;
constexpr std::size_t kParamsBytes = std::size_t{32} << 10;
constexpr std::size_t kBitmapBytes = std::size_t{16} << 20;
static_assert(kParamsBytes >= SamplerInputs::kMostRows * sizeof(SampleParams));
static_assert(kBitmapBytes * 8 <= std::size_t{1} << 32, "a bit's index has 32 bits");

/// Bits stand for ids of histories: the same one may come many times.
__global__ void __launch_bounds__(kBitThreads)
    set_bits(const std::uint32_t* positions, int count, std::uint32_t* bitmaps) {
  const int i = static_cast<int>(blockIdx.x * kBitThreads + threadIdx.x);
  if (i < count) atomicOr(bitmaps + positions[i] / 32, 1u << (positions[i] % 32));
}

/// Histories of the others need not reach the device.
bool penalised(const SampleRow& row) {
  return row.target < 0 && row.repetition_penalty != 1 && !row.history.empty();
}

std::size_t words_of(std::size_t vocabulary) { return (vocabulary + 31) / 32; }

}  // namespace

/// A list on its way to the device, in pieces that fit a slot. After each piece, launch(entries,
/// count) enqueues the kernel that reads it: the next piece takes its place.
template <typename Entry, typename Launch>
class SamplerInputs::List {
 public:
  /// The first piece goes behind the first `used` bytes of `slot`, which have been enqueued.
  List(SamplerInputs& inputs, Slot& slot, std::size_t used, Stream& stream, Launch launch)
      : inputs_(inputs), slot_(&slot), used_(used), stream_(stream), launch_(launch) {}

  void add(const Entry& entry) {
    if (count_ == (kStagingBytes - used_) / sizeof(Entry)) send();
    if (slot_ == nullptr) slot_ = &inputs_.free_slot();
    entries()[count_++] = entry;
  }

  void send() {
    if (count_ == 0) return;
    ZI_CUDA(cudaMemcpyAsync(inputs_.lists(), entries(), count_ * sizeof(Entry),
                            cudaMemcpyHostToDevice, cuda_stream(stream_)));
    stream_.record(*slot_->copied);
    launch_(reinterpret_cast<const Entry*>(inputs_.lists()), static_cast<int>(count_));
    slot_ = nullptr;
    used_ = 0;
    count_ = 0;
  }

 private:
  Entry* entries() const { return reinterpret_cast<Entry*>(slot_->memory.data() + used_); }

  SamplerInputs& inputs_;
  Slot* slot_;
  std::size_t used_;
  Stream& stream_;
  Launch launch_;
  std::size_t count_ = 0;
};

SamplerInputs::SamplerInputs(Device& device)
    : memory_(device.allocate(kParamsBytes + kStagingBytes + kBitmapBytes)) {
  for (Slot& slot : slots_) slot = {device.allocate_pinned(kStagingBytes), device.make_event()};
}

std::byte* SamplerInputs::params() const { return memory_.data(); }
std::byte* SamplerInputs::lists() const { return memory_.data() + kParamsBytes; }
std::uint32_t* SamplerInputs::bitmaps() const {
  return reinterpret_cast<std::uint32_t*>(memory_.data() + kParamsBytes + kStagingBytes);
}

SamplerInputs::Slot& SamplerInputs::free_slot() {
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % kSlots;
  slot.copied->synchronize();
  return slot;
}

std::size_t SamplerInputs::room_for(std::span<const SampleRow> rows, std::size_t vocabulary) const {
  const std::size_t most = std::min(rows.size(), kMostRows);
  const std::size_t most_bitmaps = kBitmapBytes / 4 / words_of(vocabulary);
  std::size_t count = 0;
  for (std::size_t bitmaps = 0; count < most; ++count) {
    if (penalised(rows[count]) && ++bitmaps > most_bitmaps) break;
  }
  return count;
}

/// Kinds of rows one after the other, so that each kernel's rows are neighbours.
RowOrder SamplerInputs::write_params(std::span<const SampleRow> rows, SampleParams* params) {
  const auto kind_of = [](const SampleRow& row) -> std::size_t {
    const bool draws = row.target < 0 && row.temperature > 0;
    return draws ? (row.top > 0 ? 1 : 0) : (row.top > 0 ? 2 : 3);
  };
  std::array<int, 4> counts{};
  for (const SampleRow& row : rows) ++counts[kind_of(row)];
  std::array<int, 4> next{};
  std::exclusive_scan(counts.begin(), counts.end(), next.begin(), 0);
  std::int32_t bitmaps_used = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const SampleRow& row = rows[i];
    params[next[kind_of(row)]++] = {
        .uniform = uniform01(random_bits(row.seed, row.sequence, row.position)),
        .row = static_cast<std::int32_t>(i),
        .target = row.target,
        .bitmap = penalised(row) ? bitmaps_used++ : -1,
        .top_k = row.top_k,
        .top = row.top,
        .temperature = row.temperature,
        .top_p = row.top_p,
        .least_exponent = least_exponent(row),
        .penalty = row.repetition_penalty,
    };
  }
  return {.drawn = counts[0] + counts[1],
          .first_reported = counts[0],
          .reported = counts[1] + counts[2]};
}

RowOrder SamplerInputs::upload(std::span<const SampleRow> rows, SampleBatch& batch,
                               Stream& stream) {
  const auto vocabulary = static_cast<std::size_t>(batch.vocabulary);
  Slot& slot = free_slot();
  const RowOrder order = write_params(rows, slot.memory.as<SampleParams>());
  const std::size_t used = rows.size() * sizeof(SampleParams);
  ZI_CUDA(cudaMemcpyAsync(params(), slot.memory.data(), used, cudaMemcpyHostToDevice,
                          cuda_stream(stream)));
  stream.record(*slot.copied);
  if (const auto bitmaps_used = std::ranges::count_if(rows, penalised); bitmaps_used > 0) {
    const std::size_t words = static_cast<std::size_t>(bitmaps_used) * words_of(vocabulary);
    ZI_CUDA(cudaMemsetAsync(bitmaps(), 0, words * 4, cuda_stream(stream)));
    upload_bits(rows, vocabulary, slot, used, stream);
  }
  batch.params = reinterpret_cast<const SampleParams*>(params());
  batch.bitmaps = bitmaps();
  batch.bitmap_words = static_cast<std::int64_t>(words_of(vocabulary));
  return order;
}

void SamplerInputs::upload_bits(std::span<const SampleRow> rows, std::size_t vocabulary, Slot& slot,
                                std::size_t used, Stream& stream) {
  const auto set = [&](const std::uint32_t* positions, int count) {
    const auto blocks = static_cast<unsigned>(ceil_div(count, kBitThreads));
    set_bits<<<blocks, kBitThreads, 0, cuda_stream(stream)>>>(positions, count, bitmaps());
    ZI_CUDA_LAUNCHED();
  };
  List<std::uint32_t, decltype(set)> bits(*this, slot, used, stream, set);
  std::size_t first_bit = 0;
  for (const SampleRow& row : rows) {
    if (!penalised(row)) continue;
    for (const std::int32_t id : row.history) {
      if (id < 0 || static_cast<std::size_t>(id) >= vocabulary) continue;
      bits.add(static_cast<std::uint32_t>(first_bit + static_cast<std::size_t>(id)));
    }
    first_bit += words_of(vocabulary) * 32;
  }
  bits.send();
}

}  // namespace zi
