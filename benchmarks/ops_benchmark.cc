/// Speeds of the CPU backend's ops, as a pass calls them. Each product cycles through more weights
/// than any cache holds, as a pass over the blocks does; bytes/s count the weights once a call,
/// whatever the rows. `Read` is the limit to compare with: a plain read of the same memory.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "memory_read.h"
#include "zero_infer/backend.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

constexpr std::size_t kWeightsBytes = 1200u << 20;

/// Device, stream and ops that all benchmarks share, with a field of weights.
struct Bench {
  std::unique_ptr<Device> device = make_cpu_device();
  std::unique_ptr<Stream> stream = device->make_stream("compute");
  std::unique_ptr<Ops> ops = make_cpu_ops(threads_per_rank(1));
  Buffer weights = device->allocate(kWeightsBytes);

  Bench() {
    // Values near 0.01 in both types: bit patterns 0x3c23.. repeat in either half of a float.
    std::uint32_t state = 1;
    for (auto& word : std::span(weights.as<std::uint32_t>(), kWeightsBytes / 4)) {
      state = state * 1664525u + 1013904223u;
      word = 0x3c003c00u | (state >> 8 & 0x00ff00ffu) | (state & 0x80008000u);
    }
  }
  static Bench& get() {
    static Bench bench;
    return bench;
  }
};

DType dtype_of(std::int64_t index) { return static_cast<DType>(index); }

/// Our own, and what is common in checkpoints of other programs: AWQ and asymmetric GPTQ, symmetric
/// GPTQ, int8 with a scale a row, float8 with a scale a block.
constexpr WeightFormat kPackedFormats[] = {
    kInt8Weights,
    kInt4Weights,
    {WeightFormat::Kind::kInt4, ScaleType::kFloat16, 128, true},
    {WeightFormat::Kind::kInt4, ScaleType::kFloat16, 128},
    {WeightFormat::Kind::kInt8, ScaleType::kBFloat16, 0},
    {WeightFormat::Kind::kFloat8, ScaleType::kFloat32, 128},
};
constexpr std::int64_t kFirstPacked = 16;  // of arguments; those below are a DType

WeightFormat format_of(std::int64_t index) {
  return index < kFirstPacked ? WeightFormat(dtype_of(index))
                              : kPackedFormats[index - kFirstPacked];
}

/// Arguments: rows, cols (K), output rows (N), type of activations, weights: a DType, or from
/// kFirstPacked on a packed format.
void Matmul(benchmark::State& state) {
  Bench& bench = Bench::get();
  const std::int64_t rows = state.range(0);
  const DType a_dtype = dtype_of(state.range(3));
  RowBlockMatrix w{nullptr, state.range(2),           state.range(1), 1, state.range(2),
                   0,       format_of(state.range(4))};
  w.block_stride_bytes = align_up(w.bytes(), kMatrixAlignment);
  const std::size_t copies = kWeightsBytes / w.block_stride_bytes;
  const Buffer a =
      bench.device->allocate(static_cast<std::size_t>(rows * w.cols) * size_of(a_dtype));
  const Buffer y = bench.device->allocate(static_cast<std::size_t>(rows * w.rows) * sizeof(float));
  std::fill_n(a.as<std::uint16_t>(), a.bytes() / 2, std::uint16_t{0x3c10});
  std::size_t next = 0;
  for (auto _ : state) {
    w.data = bench.weights.data() + next++ % copies * w.block_stride_bytes;
    bench.ops->matmul(a.data(), a_dtype, rows, w, y.as<float>(), *bench.stream);
    bench.stream->synchronize();
  }
  state.SetLabel(name_of(w.format));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(w.bytes()));
  state.counters["flops"] = benchmark::Counter(2.0 * static_cast<double>(rows * w.rows * w.cols),
                                               benchmark::Counter::kIsIterationInvariantRate);
}

/// A plain read of the weights' memory by as many threads.
void Read(benchmark::State& state) {
  const Bench& bench = Bench::get();
  ThreadPool pool(threads_per_rank(1));
  for (auto _ : state) read_memory(pool, {bench.weights.data(), kWeightsBytes});
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kWeightsBytes));
}

/// Arguments: new rows of each sequence, keys after them, sequences; 16 heads of 64, bfloat16
/// cache.
void Attention(benchmark::State& state) {
  Bench& bench = Bench::get();
  const auto rows = static_cast<int>(state.range(0));
  const auto keys = static_cast<int>(state.range(1));
  const auto sequences = static_cast<int>(state.range(2));
  KvLayer kv{bench.weights.data(), DType::kBFloat16, 16, 64};
  const int pages = static_cast<int>(ceil_div(keys, kKvPageTokens));
  std::vector<std::int32_t> begin;
  for (int s = 0; s <= sequences; ++s) begin.push_back(s * rows);
  const std::vector<std::int32_t> context(static_cast<std::size_t>(sequences), keys);
  std::vector<std::int32_t> tables;
  for (int page = 0; page < sequences * pages; ++page) tables.push_back(page);
  const RaggedBatch batch{rows * sequences, sequences, begin.data(), context.data(),
                          tables.data(),    pages,     begin,        context};
  std::vector<float> q(static_cast<std::size_t>(batch.tokens) * 1024, 0.5f);
  std::vector<std::uint16_t> out(q.size());
  for (auto _ : state) {
    bench.ops->attention(q.data(), 16, batch, kv, nullptr, out.data(), DType::kBFloat16,
                         *bench.stream);
    bench.stream->synchronize();
  }
  state.SetBytesProcessed(state.iterations() * sequences * pages *
                          static_cast<std::int64_t>(kv.page_bytes()));
}

/// Arguments: rows, cols.
void LayerNorm(benchmark::State& state) {
  Bench& bench = Bench::get();
  const std::int64_t rows = state.range(0);
  const std::int64_t cols = state.range(1);
  const std::vector<float> x(static_cast<std::size_t>(rows * cols), 0.5f);
  const std::vector<float> gamma(static_cast<std::size_t>(cols), 1);
  std::vector<std::uint16_t> y(x.size());
  for (auto _ : state) {
    bench.ops->normalize(x.data(), {gamma.data(), gamma.data()}, rows, cols, y.data(),
                         DType::kBFloat16, *bench.stream);
    bench.stream->synchronize();
  }
  state.SetBytesProcessed(state.iterations() * rows * cols * 6);
}

void bloom_560m_shapes(benchmark::internal::Benchmark* bench) {
  const auto bf16 = static_cast<std::int64_t>(DType::kBFloat16);
  for (const std::int64_t rows : {1, 4, 16, 64, 512}) {
    bench->Args({rows, 1024, 3072, bf16, bf16});
    bench->Args({rows, 1024, 1024, bf16, bf16});
    bench->Args({rows, 1024, 4096, bf16, bf16});
    bench->Args({rows, 4096, 1024, bf16, bf16});
  }
  bench->Args({1, 1024, 250880, bf16, bf16});
  for (const std::int64_t rows : {1, 16, 512}) {
    for (std::int64_t packed = 0; packed < std::ssize(kPackedFormats); ++packed) {
      bench->Args({rows, 1024, 4096, bf16, kFirstPacked + packed});
      bench->Args({rows, 4096, 1024, bf16, kFirstPacked + packed});
    }
  }
  const auto f32 = static_cast<std::int64_t>(DType::kFloat32);
  const auto f16 = static_cast<std::int64_t>(DType::kFloat16);
  for (const std::int64_t rows : {1, 16}) {
    bench->Args({rows, 1024, 4096, f32, f32});
    bench->Args({rows, 1024, 4096, f32, bf16});
    bench->Args({rows, 1024, 4096, f16, f16});
  }
}

BENCHMARK(Read)->UseRealTime();
BENCHMARK(Matmul)->Apply(bloom_560m_shapes)->UseRealTime();
BENCHMARK(Attention)
    ->Args({1, 128, 1})
    ->Args({1, 2048, 1})
    ->Args({1, 512, 16})
    ->Args({2048, 2048, 1})
    ->UseRealTime();
BENCHMARK(LayerNorm)->Args({1, 1024})->Args({64, 1024})->Args({1, 14336})->UseRealTime();

}  // namespace
}  // namespace zi

BENCHMARK_MAIN();
