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
constexpr int kChangeThreads = 256;
constexpr int kCopyThreads = 256;
constexpr unsigned kCopyBlocks = 16;  // of a row

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

/// A change to the logits of the row that has these params.
struct RowChange {
  std::int32_t params = 0;
  LogitChange change;
};

/// Copies the logits of rows that have a copy (y), after the repetition penalty.
__global__ void __launch_bounds__(kCopyThreads) copy_logits(const SampleBatch batch) {
  const SampleParams params = batch.params[blockIdx.y];
  if (params.copy < 0) return;
  float* const copy = copy_of(batch, params);
  const PenalisedRow row = penalised_row(batch, params);
  const auto stride = static_cast<int>(gridDim.x) * kCopyThreads;
  for (int id = static_cast<int>(blockIdx.x) * kCopyThreads + static_cast<int>(threadIdx.x);
       id < row.count; id += stride) {
    copy[id] = row.value(id, __ldg(row.logits + id));
  }
}

/// Makes the changes in the copies, from the raw logits: the bias comes before the repetition
/// penalty. Each operation is rounded, as on the host.
__global__ void __launch_bounds__(kChangeThreads)
    change_logits(const SampleBatch batch, const RowChange* changes, int count) {
  const int i = static_cast<int>(blockIdx.x) * kChangeThreads + static_cast<int>(threadIdx.x);
  if (i >= count) return;
  const LogitChange change = changes[i].change;
  const SampleParams params = batch.params[changes[i].params];
  const PenalisedRow row = penalised_row(batch, params);
  const float biased = __fadd_rn(row.logits[change.id], change.bias);
  copy_of(batch, params)[change.id] = __fsub_rn(row.value(change.id, biased), change.penalty);
}

std::size_t words_of(std::size_t vocabulary) { return (vocabulary + 31) / 32; }

}  // namespace

/// A list on its way to the device, in pieces that fit a slot. After each piece, launch(entries,
/// count) enqueues the kernel that reads it: the next piece takes its place.
template <typename Entry, typename Launch>
class SamplerInputs::List {
 public:
  List(SamplerInputs& inputs, Stream& stream, Launch launch)
      : inputs_(inputs), stream_(stream), launch_(launch) {}

  /// The first piece goes behind the first `used` bytes of `slot`, which have been enqueued.
  void begin_in(Slot& slot, std::size_t used) {
    slot_ = &slot;
    used_ = used;
  }

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
  Slot* slot_ = nullptr;  // null: the next entry takes a free one
  std::size_t used_ = 0;
  Stream& stream_;
  Launch launch_;
  std::size_t count_ = 0;
};

SamplerInputs::SamplerInputs(Device& device, std::span<std::byte> scratch)
    : memory_(device.allocate(kParamsBytes + kStagingBytes + kBitmapBytes)), scratch_(scratch) {
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
  const std::size_t most_copies = scratch_.size() / sizeof(float) / vocabulary;
  std::size_t bitmaps = 0;
  std::size_t copies = 0;
  std::size_t count = 0;
  for (; count < most; ++count) {
    if (penalises_repetition(rows[count]) && ++bitmaps > most_bitmaps) break;
    if (changes_logits(rows[count]) && ++copies > most_copies) break;
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
  std::int32_t copies_used = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const SampleRow& row = rows[i];
    places_[i] = next[kind_of(row)]++;
    params[places_[i]] = {
        .uniform = uniform01(random_bits(row.seed, row.sequence, row.position)),
        .row = static_cast<std::int32_t>(i),
        .target = row.target,
        .bitmap = penalises_repetition(row) ? bitmaps_used++ : -1,
        .copy = changes_logits(row) ? copies_used++ : -1,
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
  if (const auto bitmaps_used = std::ranges::count_if(rows, penalises_repetition);
      bitmaps_used > 0) {
    const std::size_t words = static_cast<std::size_t>(bitmaps_used) * words_of(vocabulary);
    ZI_CUDA(cudaMemsetAsync(bitmaps(), 0, words * 4, cuda_stream(stream)));
    upload_bits(rows, vocabulary, slot, used, stream);
  }
  batch.params = reinterpret_cast<const SampleParams*>(params());
  batch.bitmaps = bitmaps();
  batch.bitmap_words = static_cast<std::int64_t>(words_of(vocabulary));
  batch.copies = reinterpret_cast<float*>(scratch_.data());
  if (std::ranges::any_of(rows, changes_logits)) change_copies(rows, batch, stream);
  return order;
}

void SamplerInputs::upload_bits(std::span<const SampleRow> rows, std::size_t vocabulary, Slot& slot,
                                std::size_t used, Stream& stream) {
  const auto set = [&](const std::uint32_t* positions, int count) {
    const auto blocks = static_cast<unsigned>(ceil_div(count, kBitThreads));
    set_bits<<<blocks, kBitThreads, 0, cuda_stream(stream)>>>(positions, count, bitmaps());
    ZI_CUDA_LAUNCHED();
  };
  List<std::uint32_t, decltype(set)> bits(*this, stream, set);
  bits.begin_in(slot, used);
  std::size_t first_bit = 0;
  for (const SampleRow& row : rows) {
    if (!penalises_repetition(row)) continue;
    for (const std::int32_t id : row.history) {
      if (id < 0 || static_cast<std::size_t>(id) >= vocabulary) continue;
      bits.add(static_cast<std::uint32_t>(first_bit + static_cast<std::size_t>(id)));
    }
    first_bit += words_of(vocabulary) * 32;
  }
  bits.send();
}

void SamplerInputs::change_copies(std::span<const SampleRow> rows, const SampleBatch& batch,
                                  Stream& stream) {
  const cudaStream_t cuda = cuda_stream(stream);
  const dim3 grid(kCopyBlocks, static_cast<unsigned>(rows.size()));
  copy_logits<<<grid, kCopyThreads, 0, cuda>>>(batch);
  ZI_CUDA_LAUNCHED();
  const auto change = [&](const RowChange* changes, int count) {
    const auto blocks = static_cast<unsigned>(ceil_div(count, kChangeThreads));
    change_logits<<<blocks, kChangeThreads, 0, cuda>>>(batch, changes, count);
    ZI_CUDA_LAUNCHED();
  };
  List<RowChange, decltype(change)> list(*this, stream, change);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (!changes_logits(rows[i])) continue;
    const auto vocabulary = static_cast<std::size_t>(batch.vocabulary);
    for (const LogitChange& c : changes_.of(rows[i], vocabulary)) list.add({places_[i], c});
  }
  list.send();
}

}  // namespace zi
