// How fast a model's weights are loaded, one JSON line on stdout of rank 0: seconds of the engine's
// own loader, with nothing of the checkpoint in the page cache, and what the disk gives without a
// loader. Each load is between two bare runs over as many bytes of the same files, all ranks at
// once, because a disk's rate drifts.
//
//   tests/make_checkpoint --config config/models/bloom-3b/config.json --out DIR --shards 3
//     --tokenizer tests/data/bloom-kjv/tokenizer.json
//   mpirun -np N benchmarks/load_benchmark --checkpoint DIR --tier device|host|nvme
//     [--start first|warm|cached] [--nvme-path DIR] [--cycles N]
//
// As much memory as the load takes is taken before it, and given back piece by piece just before
// the load takes its own: a virtual machine's host may return memory more slowly than a disk reads.
// memory_s says how long taking it took, fresh_load_s a load without that.
//
// first: nothing is there but the checkpoint on the disk; with nvme the shard files are written.
// warm: the shard files of an earlier start are there. cached: the checkpoint is in the page cache.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "bare_disk.h"
#include "command_of.h"
#include "engine/engine.h"
#include "measure/summary.h"
#include "reserve_device.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using nlohmann::ordered_json;

struct Options {
  std::string checkpoint;
  std::string model;  // stands in the result
  std::string tier = "device";
  std::string start = "first";
  std::string backend = "cpu";
  std::string nvme_path;
  std::string commit = "unknown";
  std::string machine = "unknown";
  std::string command;
  int cycles = 5;
  BareOptions bare;
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double slowest(World& world, double seconds) { return std::ranges::max(world.all_gather(seconds)); }

/// One start of the engine.
struct Load {
  double load_s = 0;                    // weights, the slowest rank
  double start_s = 0;                   // from nothing to ready for a pass
  std::uint64_t read = 0, written = 0;  // of all ranks, as the kernel counted them
  std::size_t peak_host = 0;            // of a rank
  std::size_t memory = 0;               // of this rank, for what rests in memory
  double bare_s = 0;                    // of the bare run before
  double memory_s = 0;                  // of taking as much before, the slowest rank
  std::uint64_t nvme_shards = 0;        // of all ranks
  std::uint64_t head = 0;               // bytes of the whole head
  std::string dtype;
};

/// What a load has to move at least, of all ranks.
struct Need {
  std::uint64_t read = 0;
  std::uint64_t copied = 0;  // of these, written to shard files
};

class Runner {
 public:
  Runner(World& world, const Options& options)
      : world_(world), o_(options), files_(checkpoint_ranges(options.checkpoint)) {
    config_.model = o_.checkpoint;
    config_.quiet = true;
    config_.batch_size = {1};
    config_.kv_budget = std::size_t{64} << 20;
    config_.backend = o_.backend == "cuda" ? BackendChoice::kCuda : BackendChoice::kCpu;
    config_.cpu_offload = o_.tier == "host";
    if (o_.tier == "nvme") config_.nvme_offload_path = folder();
  }
  ~Runner() {
    if (world_.rank() == 0 && o_.tier == "nvme") {
      std::error_code ignored;
      std::filesystem::remove_all(folder(), ignored);
    }
  }

  ordered_json run() {
    if (o_.start == "warm") (void)load(0);  // makes the shard files
    const Load fresh = load(0);
    const Need need = need_of(fresh);
    std::vector<Load> loads;
    std::vector<double> load_s, start_s, memory_s, bare_s, ratios;
    for (int i = 0; i < o_.cycles; ++i) {
      loads.push_back(load(fresh.memory, need));
      memory_s.push_back(loads.back().memory_s);
      load_s.push_back(loads.back().load_s);
      start_s.push_back(loads.back().start_s);
      check(loads.back());
      bare_s.push_back((loads.back().bare_s + bare(need)) / 2);
      ratios.push_back(bare_s.back() / load_s.back());
    }
    const auto moved = static_cast<double>(need.read + need.copied) * 1e-9;
    ordered_json line = {{"name", "load"},
                         {"commit", o_.commit},
                         {"machine", o_.machine},
                         {"world", world_.size()},
                         {"cores", std::thread::hardware_concurrency()},
                         {"command", o_.command},
                         {"backend", o_.backend},
                         {"model", o_.model},
                         {"dtype", loads.front().dtype},
                         {"tier", o_.tier},
                         {"start", o_.start},
                         {"cycles", o_.cycles},
                         {"checkpoint_bytes", total_bytes(files_)},
                         {"needed_read_bytes", need.read},
                         {"read_bytes", loads.back().read},
                         {"written_bytes", loads.back().written},
                         {"load_s", median(load_s)},
                         {"load_s_min", std::ranges::min(load_s)},
                         {"load_s_max", std::ranges::max(load_s)},
                         {"start_s", median(start_s)},
                         {"memory_s", median(memory_s)},
                         {"fresh_load_s", fresh.load_s},
                         {"bare_s", median(bare_s)},
                         {"achieved_gb_s", moved / median(load_s)},
                         {"limit_gb_s", moved / median(bare_s)},
                         {"limit_how", limit_how()},
                         {"ratio", median(bare_s) / median(load_s)},
                         {"pair_ratio", median(ratios)},
                         {"pair_ratio_min", std::ranges::min(ratios)},
                         {"pair_ratio_max", std::ranges::max(ratios)},
                         {"head_bytes", loads.front().head},
                         {"shard_file_bytes", loads.front().nvme_shards},
                         {"peak_host_bytes", fresh.peak_host}};
    return line;
  }

 private:
  std::filesystem::path folder() const {
    return std::filesystem::path(o_.nvme_path) / "load-benchmark-shards";
  }

  /// Rank 0 prepares the files while the others wait.
  void prepare() {
    world_.all_or_none([&] {
      if (world_.rank() != 0) return;
      if (o_.tier == "nvme" && o_.start == "first") std::filesystem::remove_all(folder());
      if (o_.start == "cached") {
        bring_into_cache(files_);
      } else {
        evict(files_);
      }
      if (o_.tier == "nvme" && o_.start == "warm") evict(shard_files());
    });
    world_.barrier();
  }

  std::vector<FileRange> shard_files() const {
    std::vector<FileRange> files;
    if (!std::filesystem::exists(folder())) return files;
    for (const auto& e : std::filesystem::recursive_directory_iterator(folder())) {
      if (e.path().extension() == ".shard") files.push_back({e.path(), 0, e.file_size()});
    }
    return files;
  }

  /// A load between two bare runs over `need`; without it only the load. `reserve`: bytes of memory
  /// that are taken before, and given back as the load takes its own.
  Load load(std::size_t reserve, const std::optional<Need>& need = std::nullopt) {
    const auto begun = std::chrono::steady_clock::now();
    Backend backend = make_backend(world_, config_);
    backend.device = std::make_unique<ReserveDevice>(std::move(backend.device), reserve);
    const double memory_s = slowest(world_, seconds_since(begun));
    double bare_s = 0;
    if (need) bare_s = bare(*need);
    prepare();
    const DiskUse before = disk_use();
    const auto start = std::chrono::steady_clock::now();
    Engine engine(world_, std::move(backend), config_);
    const double start_s = seconds_since(start);
    const DiskUse after = disk_use();
    Load l;
    l.memory_s = memory_s;
    l.bare_s = bare_s;
    const MemoryPlan& plan = engine.plan();
    l.memory = plan.head_shard + plan.embedding_shard + plan.host_shards + plan.device_shards;
    l.load_s = slowest(world_, engine.load_seconds());
    l.start_s = slowest(world_, start_s);
    for (std::uint64_t bytes : world_.all_gather(after.read - before.read)) l.read += bytes;
    for (std::uint64_t bytes : world_.all_gather(after.written - before.written)) {
      l.written += bytes;
    }
    l.peak_host = std::ranges::max(world_.all_gather(peak_memory_bytes()));
    for (std::size_t bytes : world_.all_gather(engine.plan().nvme_shards)) l.nvme_shards += bytes;
    const TensorSpec& head = engine.model().spec().head.matrices.front();
    l.head = static_cast<std::uint64_t>(head.shape[0]) *
             engine.plan().head_format.row_bytes(head.shape[1]);
    l.dtype = name_of(engine.plan().block_format);
    return l;
  }

  /// All of the checkpoint, or of a warm start the head.
  Need need_of(const Load& l) const {
    const std::uint64_t all = total_bytes(files_);
    if (o_.tier != "nvme") return {all, 0};
    return o_.start == "warm" ? Need{l.head, 0} : Need{all, all - l.head};
  }

  /// The bytes came from where they should have.
  void check(const Load& l) const {
    const auto need = static_cast<double>(need_of(l).read);
    const auto read = static_cast<double>(l.read);
    // Some of the page cache may have gone again.
    const double most = o_.start == "cached" ? 0.1 * need : 1.02 * need + (32 << 20);
    const double least = o_.start == "cached" ? 0 : 0.99 * need;
    if (read < least || read > most) {
      throw Error(fmt::format("a {} start needs {} from the disk and read {}", o_.start,
                              format_bytes(need), format_bytes(read)));
    }
  }

  /// Seconds of the slowest rank for the same bytes without a loader.
  double bare(const Need& need) {
    prepare();
    const int rank = world_.rank(), world = world_.size();
    double seconds = 0;
    if (o_.start == "cached") {
      return slowest(world_, bare_cached_seconds(share_of(files_, rank, world), 4));
    }
    std::vector<FileRange> read = first_of(files_, need.read - need.copied);
    if (need.copied > 0) {
      const auto to = std::filesystem::path(o_.nvme_path) / fmt::format("load-benchmark-{}", rank);
      seconds +=
          bare_copy_seconds(share_of(first_of(files_, need.copied), rank, world), to, o_.bare);
      world_.barrier();
    }
    seconds += bare_read_seconds(share_of(read, rank, world), o_.bare);
    return slowest(world_, seconds);
  }

  std::string limit_how() const {
    const std::string read = fmt::format(
        "bare io_uring O_DIRECT reads of the same files, depth {} of {} MiB, all ranks at once "
        "each "
        "its share, before and after each load",
        o_.bare.depth, o_.bare.block_bytes >> 20);
    if (o_.start == "cached") return "buffered preads of the same files by 4 threads a rank";
    if (o_.tier != "nvme" || o_.start == "warm") return read;
    return fmt::format(
        "a bare copy of as many bytes to a new file, O_DIRECT on both sides, {} threads a rank, 4 "
        "MiB "
        "each, with fsync; then for the head {}",
        o_.bare.copiers, read);
  }

  World& world_;
  Options o_;
  std::vector<FileRange> files_;
  RunConfig config_;
};

int run(World& world, const Options& o) {
  set_log(LogLevel::kQuiet, "");
  const ordered_json line = Runner(world, o).run();
  if (world.rank() == 0) fmt::print("{}\n", line.dump());
  return 0;
}

}  // namespace
}  // namespace zi

int main(int argc, char** argv) {
  zi::World world(&argc, &argv);
  try {
    zi::Options o;
    o.command =
        zi::command_of(world, "load_benchmark", argc, argv, {"--commit", "--machine", "--model"});
    CLI::App app("Loading, and the limit of the disk");
    app.add_option("--checkpoint", o.checkpoint, "a folder that make_checkpoint wrote, or a model")
        ->required();
    app.add_option("--model", o.model, "stands in the result");
    app.add_option("--tier", o.tier, "where the blocks rest")
        ->check(CLI::IsMember({"device", "host", "nvme"}));
    app.add_option("--start", o.start, "what is there already")
        ->check(CLI::IsMember({"first", "warm", "cached"}));
    app.add_option("--backend", o.backend, "what computes")->check(CLI::IsMember({"cpu", "cuda"}));
    app.add_option("--nvme-path", o.nvme_path, "folder of the shard files and of bare copies");
    app.add_option("--cycles", o.cycles, "loads, each between two bare runs")
        ->check(CLI::PositiveNumber);
    app.add_option("--depth", o.bare.depth, "of bare reads")->check(CLI::PositiveNumber);
    app.add_option("--copiers", o.bare.copiers, "threads of bare copies")
        ->check(CLI::PositiveNumber);
    app.add_option("--block", o.bare.block_bytes, "bytes of a bare read");
    app.add_option("--commit", o.commit, "stands in the result");
    app.add_option("--machine", o.machine, "stands in the result");
    CLI11_PARSE(app, argc, argv);
    return zi::run(world, o);
  } catch (const std::exception& error) {
    zi::log_error(error.what());
    world.abort(1);
  }
}
