// What storage gives (bare reads by depth and block size) and what of it the NVMe store brings into
// memory, over one shard file:
//   nvme_benchmark --path DIR [--bytes 2GiB] [--benchmark_* flags]
// The file is written to DIR once and stays there for the next run. Reads are O_DIRECT: no page
// cache.

#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_descriptor.h"
#include "offload/block_reader.h"
#include "offload/block_reader_choice.h"
#include "offload/nvme_store.h"
#include "offload/shard_writer.h"
#include "zero_infer/backend.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

constexpr int kRepetitions = 10;
constexpr std::int64_t kUnitBytes = std::int64_t{256} << 20;
constexpr std::int64_t kCols = 4096;

/// Cheap values that differ from place to place.
class CountingSource final : public WeightSource {
 public:
  void read(const TensorSpec&, std::int64_t first, std::int64_t count, DType,
            void* dst) const override {
    auto* out = static_cast<std::uint16_t*>(dst);
    for (std::int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<std::uint16_t>(mix64(static_cast<std::uint64_t>(first + i)));
    }
  }
  bool contains(const std::string&) const override { return true; }
  DType stored_dtype(const std::string&) const override { return DType::kBFloat16; }
  std::uint64_t identity() const override { return 1; }
  std::string describe() const override { return "benchmark"; }
};

/// The shard file and what it was written for.
struct Subject {
  std::unique_ptr<Device> device = make_cpu_device();
  ShardFileKey key;
  std::vector<ShardSize> shards;
  std::filesystem::path file;
  int units = 0;
  std::size_t shard_bytes = 0;

  Subject(const std::filesystem::path& directory, std::size_t bytes) {
    units = static_cast<int>(ceil_div(static_cast<std::int64_t>(bytes), kUnitBytes));
    key.model_identity = static_cast<std::uint64_t>(units);
    key.model_name = "benchmark";
    UnitSpec spec;
    spec.matrices = {{"w", {kUnitBytes / 2 / kCols, kCols}}};
    const PartitionLayout layout(spec, key.format, key.world);
    const CountingSource source;
    const ShardReader reader(source, layout, 0);
    shard_bytes = reader.shard_bytes();
    std::vector<int> numbers;
    for (int u = 0; u < units; ++u) {
      numbers.push_back(u);
      shards.push_back({u, shard_bytes});
    }
    const std::vector<const ShardReader*> readers(numbers.size(), &reader);
    file = prepare_shard_file(directory, key, numbers, readers, {});
  }
  std::int64_t bytes() const { return static_cast<std::int64_t>(shard_bytes) * units; }
};

/// Storage alone: the whole blocks of the file, `depth` reads of `block` bytes in flight.
void bare_read(benchmark::State& state, const Subject& subject, bool io_uring) {
  const auto depth = static_cast<std::size_t>(state.range(0));
  const auto block = static_cast<std::size_t>(state.range(1));
  const FileDescriptor file(::open(subject.file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.is_open() || !enable_direct_reads(file.get(), subject.file.string())) {
    state.SkipWithError("no O_DIRECT: the page cache would be measured");
    return;
  }
  const Buffer staging = subject.device->allocate_pinned(depth * block);
  const auto reader =
      make_block_reader({file.get(), subject.file.string(), true}, staging.span(), block, io_uring);
  const std::size_t blocks = static_cast<std::size_t>(subject.bytes()) / block;
  for (auto _ : state) {
    move_blocks(*reader, depth, [&](std::size_t i) {
      return i < blocks ? BlockRange{i * block, block} : BlockRange{};
    });
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(blocks * block));
  state.SetLabel(reader->method() + " + O_DIRECT");
}

/// The store's whole way: read, checksum, copy. The next unit is started ahead, as the fetcher
/// does.
void store_read(benchmark::State& state, Subject& subject, bool io_uring) {
  NvmeOptions options;
  options.depth = static_cast<int>(state.range(0));
  options.allow_io_uring = io_uring;
  NvmeStore store(*subject.device, subject.file, subject.key, subject.shards, options);
  const Buffer slot = subject.device->allocate(subject.shard_bytes);
  const auto copies = subject.device->make_stream("copies");
  const auto run = [&](int units) {
    store.start_read(0);
    for (int u = 0; u < units; ++u) {
      if (u + 1 < units) store.start_read(u + 1);
      store.finish_read(u, slot.data(), *copies);
    }
    copies->synchronize();
  };
  run(1);  // touches the slot's pages
  for (auto _ : state) run(subject.units);
  state.SetBytesProcessed(state.iterations() * subject.bytes());
  state.SetLabel(store.method());
}

void prepare(benchmark::internal::Benchmark* result) {
  result->UseRealTime()->Unit(benchmark::kMillisecond)->Iterations(1)->Repetitions(kRepetitions);
  result->ReportAggregatesOnly();
}

/// Takes `--name value` or `--name=value` out of the arguments.
std::optional<std::string> take_flag(std::vector<char*>& arguments, std::string_view name) {
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    const auto at = arguments.begin() + static_cast<std::ptrdiff_t>(i);
    if (argument == name && i + 1 < arguments.size()) {
      std::string value = arguments[i + 1];
      arguments.erase(at, at + 2);
      return value;
    }
    if (argument.starts_with(name) && argument.substr(name.size()).starts_with('=')) {
      std::string value(argument.substr(name.size() + 1));
      arguments.erase(at);
      return value;
    }
  }
  return std::nullopt;
}

int run(int argc, char** argv) {
  std::vector<char*> arguments(argv, argv + argc);
  const std::optional<std::string> path = take_flag(arguments, "--path");
  const std::size_t bytes = parse_size(take_flag(arguments, "--bytes").value_or("2GiB"));
  int left = static_cast<int>(arguments.size());
  benchmark::Initialize(&left, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(left, arguments.data())) return 2;
  if (!path || bytes == 0) {
    fmt::print(stderr, "usage: {} --path DIR [--bytes 2GiB] [--benchmark_* flags]\n", argv[0]);
    return 2;
  }
  Subject subject(*path, bytes);
  benchmark::AddCustomContext("shard_file", subject.file.string());
  benchmark::AddCustomContext("bytes", std::to_string(subject.bytes()));

  const auto uring = [&](benchmark::State& state) { bare_read(state, subject, true); };
  auto* bare =
      benchmark::RegisterBenchmark("bare_read/io_uring", uring)->ArgNames({"depth", "block"});
  for (const std::int64_t block :
       {std::int64_t{1} << 17, std::int64_t{1} << 20, std::int64_t{4} << 20}) {
    for (const std::int64_t depth : {1, 4, 16, 32}) bare->Args({depth, block});
  }
  prepare(bare);
  prepare(benchmark::RegisterBenchmark(
              "bare_read/pread", [&](benchmark::State& state) { bare_read(state, subject, false); })
              ->ArgNames({"depth", "block"})
              ->Args({16, 4 << 20}));
  prepare(
      benchmark::RegisterBenchmark(
          "store_read/io_uring", [&](benchmark::State& state) { store_read(state, subject, true); })
          ->ArgName("depth")
          ->Arg(4)
          ->Arg(16)
          ->Arg(32));
  prepare(
      benchmark::RegisterBenchmark(
          "store_read/pread", [&](benchmark::State& state) { store_read(state, subject, false); })
          ->ArgName("depth")
          ->Arg(16));
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace zi

int main(int argc, char** argv) {
  try {
    return zi::run(argc, argv);
  } catch (const zi::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
