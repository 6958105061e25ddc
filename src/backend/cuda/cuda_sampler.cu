#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "backend/cuda/cuda_sampler.h"
#include "backend/cuda/cuda_sampler_inputs.h"
#include "backend/cuda/cuda_sampler_rows.h"
#include "backend/cuda/cuda_support.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

constexpr int kScanThreads = 256;
constexpr int kScanWarps = kScanThreads / kLanes;
constexpr int kScanPerThread = 32;
/// Logits of a block. It does not depend on the number of rows, so neither do a row's sums.
constexpr int kChunk = kScanThreads * kScanPerThread;
constexpr int kCombineThreads = 256;

constexpr std::size_t kPartialBytes = std::size_t{1} << 20;
constexpr std::size_t kStateBytes = std::size_t{16} << 10;
/// Rows that several blocks finish together, at most: 4.4 MB.
constexpr std::size_t kMostWorks = 48;
/// Ids of each of those blocks, at least: with fewer, their meetings take longer than a single
/// block's reads.
constexpr int kLeastIds = 2048;

/// Largest logit and sum(exp(x - largest)) of some logits, and the best of them after bias and
/// penalties.
struct Partial {
  double sum = 0;
  std::uint64_t best = 0;
  float largest = -INFINITY;
  std::int32_t valid = 1;
};

constexpr std::size_t kPartials = kPartialBytes / sizeof(Partial);
static_assert(kStateBytes >= SamplerInputs::kMostRows * sizeof(RowState));

/// What exponents are taken relative to: where there is nothing but -infinity, the sum is 0.
__device__ float base_of(float largest) { return largest == -INFINITY ? 0.0f : largest; }

__device__ Partial merged(const Partial& a, const Partial& b) {
  Partial out;
  out.largest = fmaxf(a.largest, b.largest);
  const float base = base_of(out.largest);
  out.sum = a.sum * static_cast<double>(expf(a.largest - base)) +
            b.sum * static_cast<double>(expf(b.largest - base));
  out.best = a.best > b.best ? a.best : b.best;
  out.valid = a.valid & b.valid;
  return out;
}

/// Clears what the blocks of a row add to, ahead of them.
__device__ void clear(RowWork* works, int count) {
  constexpr int kPieces = kClearedBytes / sizeof(uint4);
  static_assert(kClearedBytes % sizeof(uint4) == 0 && sizeof(RowWork) % sizeof(uint4) == 0);
  const unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
  const auto threads = static_cast<int>(gridDim.x * gridDim.y) * kScanThreads;
  for (auto i = static_cast<int>(block * kScanThreads + threadIdx.x); i < count * kPieces;
       i += threads) {
    reinterpret_cast<uint4*>(works + i / kPieces)[i % kPieces] = uint4{};
  }
}

/// One block for each chunk (x) of each row (y); partials (rows, chunks). All loads of a thread are
/// under way at once, and rows may lie at any alignment.
__global__ void __launch_bounds__(kScanThreads, 4)
    scan_chunks(const SampleBatch batch, Partial* partials, int works) {
  clear(batch.works, works);
  const SampleParams params = batch.params[blockIdx.y];
  const PenalisedRow row = drawn_row(batch, params);
  const int first = static_cast<int>(blockIdx.x) * kChunk + static_cast<int>(threadIdx.x);
  const float* const logits = batch.logits + params.row * batch.ld + first;
  const int left = row.count - first;
  float x[kScanPerThread];
#pragma unroll
  for (int i = 0; i < kScanPerThread; ++i) {
    x[i] = i * kScanThreads < left ? __ldg(logits + i * kScanThreads) : -INFINITY;
  }
  float largest = -INFINITY;
  bool valid = true;
  // Strictly larger ones only: a thread's ids ascend. A thread without any keeps an id beyond the
  // vocabulary, at -infinity, which ranks after the chunk's first id.
  int at = 0;
#pragma unroll
  for (int i = 0; i < kScanPerThread; ++i) {
    valid = valid && x[i] < INFINITY;  // NaN is not
    at = x[i] > largest ? i * kScanThreads : at;
    largest = x[i] > largest ? x[i] : largest;
  }
  float best = largest;
  if (params.bitmap >= 0 || params.copy >= 0) {
    // Where it is the raw logits, the cache holds them: the bits' words and 32 logits together are
    // too many registers.
    const float* const drawn_by = row.logits + first;
    best = -INFINITY;
    at = 0;
#pragma unroll 4
    for (int i = 0; i < min(left, kChunk); i += kScanThreads) {
      const float value = row.value(first + i, __ldg(drawn_by + i));
      at = value > best ? i : at;
      best = value > best ? value : best;
    }
  }

  Partial warp;
  warp.largest = value_of(__reduce_max_sync(kAllLanes, key_of(largest)));
  const float base = base_of(warp.largest);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kScanPerThread; ++i) sum += expf(x[i] - base);
  warp.sum = sum;
  for (int lane = kLanes / 2; lane > 0; lane /= 2) {
    warp.sum += __shfl_xor_sync(kAllLanes, warp.sum, lane);
  }
  const std::uint32_t key = key_of(best);
  const std::uint32_t best_key = __reduce_max_sync(kAllLanes, key);
  const auto candidate = key == best_key ? static_cast<std::uint32_t>(first + at) : 0xffffffffu;
  const std::uint32_t lowest_id = __reduce_min_sync(kAllLanes, candidate);
  warp.best = order_of(best_key, static_cast<int>(lowest_id));
  warp.valid = __all_sync(kAllLanes, valid);

  // Bytes, as a constructor cannot run for shared memory.
  alignas(Partial) __shared__ std::byte memory[kScanWarps * sizeof(Partial)];
  auto* const warps = reinterpret_cast<Partial*>(memory);
  if (threadIdx.x % kLanes == 0) warps[threadIdx.x / kLanes] = warp;
  __syncthreads();
  if (threadIdx.x != 0) return;
  Partial all = warps[0];
  for (int i = 1; i < kScanWarps; ++i) all = merged(all, warps[i]);
  partials[static_cast<std::size_t>(blockIdx.y) * gridDim.x + blockIdx.x] = all;
}

/// One warp for each row: its state, and its result unless it draws (the first `drawn` rows do).
__global__ void __launch_bounds__(kCombineThreads)
    combine_chunks(const SampleBatch batch, const Partial* partials, int chunks, int rows,
                   int drawn) {
  const int index = static_cast<int>(blockIdx.x * kCombineThreads + threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  if (index >= rows) return;
  Partial all;
  for (int chunk = lane; chunk < chunks; chunk += kLanes) {
    all = merged(all, partials[static_cast<std::size_t>(index) * chunks + chunk]);
  }
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    Partial other;
    other.sum = __shfl_down_sync(kAllLanes, all.sum, distance);
    other.best = __shfl_down_sync(kAllLanes, all.best, distance);
    other.largest = __shfl_down_sync(kAllLanes, all.largest, distance);
    other.valid = __shfl_down_sync(kAllLanes, all.valid, distance);
    all = merged(all, other);
  }
  if (lane != 0) return;

  const bool valid = all.valid != 0 && all.largest > -INFINITY;
  RowState state;
  state.log_sum = static_cast<double>(all.largest) + log(all.sum);
  state.best = all.best;
  state.largest = all.largest;
  state.valid = valid ? 1 : 0;
  batch.states[index] = state;

  const SampleParams params = batch.params[index];
  if (valid && index < drawn) return;
  std::int32_t id = kNoId;
  float logprob = NAN;
  if (valid && nothing_left(params, state)) {
    logprob = -INFINITY;
  } else if (valid) {
    id = params.target >= 0 ? params.target : id_of(state.best);
    const float raw = batch.logits[params.row * batch.ld + id];
    logprob = static_cast<float>(static_cast<double>(raw) - state.log_sum);
  }
  batch.results.ids[params.row] = id;
  batch.results.logprobs[params.row] = logprob;
}

std::size_t chunks_of(std::size_t vocabulary) { return (vocabulary + kChunk - 1) / kChunk; }

unsigned blocks_of(std::size_t count, std::size_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace

struct CudaSampler::State {
  State(Device& device, std::span<std::byte> shared)
      : inputs(device, shared),
        scratch(device.allocate(kPartialBytes + kStateBytes + kMostWorks * sizeof(RowWork))),
        blocks(blocks_at_once()),
        done(device.make_event()) {}

  Partial* partials() const { return scratch.as<Partial>(); }
  RowState* states() const { return reinterpret_cast<RowState*>(scratch.data() + kPartialBytes); }

  RowWork* works() const {
    return reinterpret_cast<RowWork*>(scratch.data() + kPartialBytes + kStateBytes);
  }

  std::size_t group_of(std::span<const SampleRow> rows, std::size_t vocabulary) const;
  void sample_group(SampleBatch batch, std::span<const SampleRow> rows, Stream& stream);

  SamplerInputs inputs;
  Buffer scratch;
  int blocks;                   // of all rows together, where each has several
  std::unique_ptr<Event> done;  // the last call's work
};

/// How many of the rows fit the scratch memory at once.
std::size_t CudaSampler::State::group_of(std::span<const SampleRow> rows,
                                         std::size_t vocabulary) const {
  const std::size_t count =
      std::min(inputs.room_for(rows, vocabulary), kPartials / chunks_of(vocabulary));
  if (count == 0) {
    throw Error("sample: a vocabulary of " + std::to_string(vocabulary) +
                " ids is too large for the GPU's sampler");
  }
  return count;
}

void CudaSampler::State::sample_group(SampleBatch batch, std::span<const SampleRow> rows,
                                      Stream& stream) {
  const RowOrder order = inputs.upload(rows, batch, stream);
  batch.states = states();

  const int finished = order.drawn + order.reported;
  if (finished > 0 && finished <= static_cast<int>(kMostWorks)) {
    const int useful = std::min(kMostRowBlocks, batch.vocabulary / kLeastIds);
    batch.blocks = std::max(1, std::min(useful, blocks / finished));
  }
  const int works = batch.blocks > 1 ? finished : 0;
  if (works > 0) batch.works = this->works();

  const cudaStream_t cuda = cuda_stream(stream);
  const auto count = static_cast<int>(rows.size());
  const auto chunks = static_cast<unsigned>(chunks_of(static_cast<std::size_t>(batch.vocabulary)));
  scan_chunks<<<dim3(chunks, static_cast<unsigned>(count)), kScanThreads, 0, cuda>>>(
      batch, partials(), works);
  ZI_CUDA_LAUNCHED();
  combine_chunks<<<blocks_of(rows.size(), kCombineThreads / kLanes), kCombineThreads, 0, cuda>>>(
      batch, partials(), static_cast<int>(chunks), count, order.drawn);
  ZI_CUDA_LAUNCHED();
  if (finished > 0) finish_rows(batch, order.drawn, order.first_reported, order.reported, cuda);
}

CudaSampler::CudaSampler(Device& device, std::span<std::byte> scratch)
    : state_(std::make_unique<State>(device, scratch)) {}

// The kernels use this memory until then.
CudaSampler::~CudaSampler() {
  try {
    state_->done->synchronize();
  } catch (const CudaError& error) {
    log_verbose(error.what());  // whoever waited for the stream has reported it
  }
}

void CudaSampler::sample(const float* logits, std::int64_t ld, std::int64_t vocabulary,
                         std::span<const SampleRow> rows, const SampleResults& results,
                         Stream& stream) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 2;
  if (vocabulary < 1 || vocabulary > kMost || ld < vocabulary) {
    throw Error("sample: rows of " + std::to_string(ld) + " logits with a vocabulary of " +
                std::to_string(vocabulary) + " ids");
  }
  for (const SampleRow& row : rows) {
    if (row.top <= kListedIds) continue;
    throw Error("sample: the GPU's sampler reports " + std::to_string(kListedIds) +
                " best ids at most, not " + std::to_string(row.top));
  }
  for (std::size_t begin = 0; begin < rows.size();) {
    const std::span<const SampleRow> left = rows.subspan(begin);
    const std::size_t count = state_->group_of(left, static_cast<std::size_t>(vocabulary));
    SampleBatch batch;
    batch.logits = logits + static_cast<std::int64_t>(begin) * ld;
    batch.ld = ld;
    batch.vocabulary = static_cast<int>(vocabulary);
    batch.results = results;
    batch.results.ids += begin;
    batch.results.logprobs += begin;
    if (results.top > 0) {
      const std::size_t tops = begin * static_cast<std::size_t>(results.top);
      batch.results.top_ids += tops;
      batch.results.top_logprobs += tops;
    }
    state_->sample_group(batch, left.first(count), stream);
    begin += count;
  }
  stream.record(*state_->done);
}

}  // namespace zi
