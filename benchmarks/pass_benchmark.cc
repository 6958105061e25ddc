// Whole passes of a model's shape with dummy weights, one JSON line a batch size on stdout of rank
// 0: the time of a pass, and the bare link or rate that bounds it, measured in the same process
// over as many bytes.
//
//   build/benchmarks/pass_benchmark --model config/models/bloom-560m --tier device|host|nvme
//     [--backend auto|cpu|cuda] [--batch N[,N..]] [--prompt-tokens N] [--gpu-weight-budget SIZE]
//     [--kv-budget SIZE] [--nvme-path DIR] [--repeats N] [--passes N]
//     [--weight-format stored|int8|int4] [--head-format stored|int8|int4] [--cpu-share auto|X]
//     [--compute-dtype bfloat16|float16|float32]
//   mpirun -np 2 ... [--travel activations|auto] [--replicated-blocks auto|N]: the gathered bytes
//     beside a bare all-gather; where weights stayed in most passes, the own weights beside a bare
//     read of them, and where all blocks are replicated, all weights
//
// With --prompt-tokens above 1 the passes that compute prompts are timed, in products a second.

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <span>

#include "base/link.h"
#include "benchmark_main.h"
#include "engine/engine.h"
#include "measure/bare_rates.h"
#include "measure/run_limits.h"
#include "measure/summary.h"
#include "memory_read.h"
#include "run_options.h"
#include "timing_ops.h"
#include "zero_infer/backend.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using nlohmann::ordered_json;

struct Options : RunOptions {
  std::string model = "config/models/bloom-560m";
  std::string tier = "device";
  WeightChoice weight_format = WeightChoice::kStored;
  WeightChoice head_format = WeightChoice::kAuto;
  std::string compute_dtype = "bfloat16";
  std::string nvme_path = "/tmp";
  std::string gpu_weight_budget;
  std::string kv_budget;
  std::string cpu_share = "0";
  Travel travel = Travel::kWeights;
  std::string replicated_blocks = "0";
  std::vector<std::int64_t> batch = {1};
  std::int64_t prompt_tokens = 1;
  std::int64_t max_pass_tokens = 0;
  int passes = 8;
  bool profile = false;
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// One thread's memcpy over as many bytes as the host tier copies in a pass, in pieces of a shard.
double memcpy_rate(const MemoryPlan& plan, int repeats) {
  const std::size_t shard = plan.blocks.front().shard_bytes();
  std::vector<char> from(plan.host_shards, 1), to(2 * shard, 0);
  std::vector<double> seconds;
  for (int i = 0; i <= repeats; ++i) {
    const double took = wall_seconds([&] {
      for (std::size_t at = 0, slot = 0; at < from.size(); at += shard, slot ^= 1) {
        std::memcpy(to.data() + slot * shard, from.data() + at, shard);
      }
    });
    if (i > 0) seconds.push_back(took);
  }
  return static_cast<double>(plan.host_shards) / median(seconds);
}

/// Collective. Bytes of weights that bare products of `rows` rows read in a second.
double bare_products(World& world, Engine& engine, std::span<const RowBlockMatrix> matrices,
                     std::int64_t rows, int repeats) {
  const Backend& backend = engine.backend();
  const auto stream = backend.device->make_stream("compute");
  return product_rate(world, *backend.device, *backend.ops, matrices, engine.plan().compute_dtype,
                      rows, *stream, {.least = repeats, .most = repeats})
      .slowest;
}

/// Collective. Operations a second of bare products with as many rows as a pass has, over a block's
/// matrices.
double product_operations(World& world, Engine& engine, std::int64_t rows, int repeats) {
  const Backend& backend = engine.backend();
  const MemoryPlan& plan = engine.plan();
  const PartitionLayout layout(engine.model().spec().blocks.front(), plan.compute_dtype, 1);
  const Buffer weights = backend.device->allocate(layout.gathered_bytes());
  const auto stream = backend.device->make_stream("compute");
  const UniformValues values{.key = 1, .half_width = 0.05f, .stored = plan.compute_dtype};
  const auto elements =
      static_cast<std::int64_t>(layout.gathered_bytes() / size_of(plan.compute_dtype));
  backend.ops->fill_uniform(values, 0, elements, weights.data(), plan.compute_dtype, *stream);
  stream->synchronize();  // products may read weights ahead
  constexpr int kBlocks = 10;
  std::vector<RowBlockMatrix> matrices;
  for (int block = 0; block < kBlocks; ++block) {
    for (std::size_t m = 0; m < layout.matrices().size(); ++m) {
      matrices.push_back(layout.gathered(m, weights.data()));
    }
  }
  const double bytes = bare_products(world, engine, matrices, rows, repeats);
  return 2 * static_cast<double>(rows) * bytes / static_cast<double>(size_of(plan.compute_dtype));
}

/// Every weight that rests on the device, of a world of one.
std::vector<RowBlockMatrix> resident_weights(const Engine& engine) {
  const MemoryPlan& plan = engine.plan();
  std::vector<RowBlockMatrix> matrices = {
      plan.head.front().own(0, engine.weights().head_shard(), 0)};
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    const std::byte* const shard = engine.weights().stores()[b]->resident(static_cast<int>(b));
    for (std::size_t i = 0; i < plan.blocks[b].matrices().size(); ++i) {
      matrices.push_back(plan.blocks[b].own(i, shard, 0));
    }
  }
  return matrices;
}

/// Seconds of bare products of `rows` rows with them, one after the other: as many bytes are read
/// as a pass of a resident model reads.
double bare_products_seconds(World& world, Engine& engine, std::int64_t rows, int repeats) {
  const std::vector<RowBlockMatrix> matrices = resident_weights(engine);
  double bytes = 0;
  for (const RowBlockMatrix& m : matrices) bytes += static_cast<double>(m.bytes());
  return bytes / bare_products(world, engine, matrices, rows, repeats);
}

RunConfig config_of(const Options& o) {
  RunConfig config;
  config.model = o.model;
  config.load_format = LoadFormat::kDummy;
  config.quiet = true;
  config.ignore_eos = true;
  config.backend = o.choice();
  config.weight_format = o.weight_format;
  config.head_format = o.head_format;
  config.compute_dtype = parse_dtype(o.compute_dtype);
  config.batch_size = o.batch;
  config.max_pass_tokens = o.max_pass_tokens;
  config.max_new_tokens = o.prompt_tokens > 1 ? 1 : o.passes;
  config.cpu_offload = o.tier == "host";
  if (o.tier == "nvme") config.nvme_offload_path = o.nvme_path;
  if (!o.gpu_weight_budget.empty()) config.gpu_weight_budget = parse_size(o.gpu_weight_budget);
  config.cpu_share = o.cpu_share == "auto" ? std::nullopt : std::optional(std::stod(o.cpu_share));
  config.travel = o.travel;
  config.replicated_blocks = o.replicated_blocks == "auto"
                                 ? std::nullopt
                                 : std::optional<std::int64_t>(std::stoll(o.replicated_blocks));
  if (!o.kv_budget.empty()) config.kv_budget = parse_size(o.kv_budget);
  return config;
}

/// The passes of one batch size.
struct Measured {
  std::vector<double> pass_seconds;  // ascending
  std::vector<double> bare_reads;    // bytes a second, one after each run: a disk's rate drifts
  FetchStats fetched;
  double rows = 0;  // of a pass
  double pass() const { return median(pass_seconds); }
  /// Of the passes, those in which weights stayed.
  double staying_share() const {
    return static_cast<double>(fetched.staying) / static_cast<double>(fetched.passes);
  }
};

Measured measure(World& world, Engine& engine, const Options& o, std::int64_t batch) {
  Measured m;
  const auto lanes = static_cast<std::size_t>(batch * world.size());
  const std::string prompt(static_cast<std::size_t>(o.prompt_tokens), 'a');
  GenerationOptions options = engine.generation_options();
  options.share_prefixes = false;  // all prompts are alike, and each lane is to compute its own
  for (int i = 0; i <= o.repeats; ++i) {
    const auto source = prompts_from_flags(std::vector<std::string>(lanes, prompt));
    MemorySink sink;
    const Engine::Outcome done = engine.generate({.source = source.get(),
                                                  .sink = &sink,
                                                  .lanes = batch,
                                                  .options = options,
                                                  .stop_signal = [] { return 0; }});
    if (done.failed.all() > 0) {
      throw Error(fmt::format("{} prompts failed (named above)", done.failed.all()));
    }
    m.fetched = done.fetched;
    const auto passes = static_cast<double>(done.stats.passes);
    m.rows = static_cast<double>(done.stats.prompt_rows) / passes;
    if (i > 0) m.pass_seconds.push_back(done.stats.seconds / passes);
    if (i > 0 && engine.plan().nvme_shards > 0) {
      m.bare_reads.push_back(measure_bare_read(*engine.backend().device,
                                               engine.weights().shard_file(), NvmeOptions{},
                                               engine.plan().nvme_shards));
    }
  }
  std::ranges::sort(m.pass_seconds);
  return m;
}

/// What bounds a pass: a number of bytes (or operations) at a rate.
struct Bound {
  double amount = 0;
  double rate = 0;
  std::string how;
};

Bound bound_of(World& world, Engine& engine, const Options& o, const Measured& m,
               const RunLimits& limits) {
  const MemoryPlan& plan = engine.plan();
  const bool cpu = engine.backend().name == "cpu";
  if (o.prompt_tokens > 1) {
    double elements = 0;
    for (const UnitSpec& block : engine.model().spec().blocks) {
      for (const TensorSpec& t : block.matrices) elements += static_cast<double>(t.elements());
    }
    const auto rows = static_cast<std::int64_t>(m.rows);
    return {2 * elements * m.rows, product_operations(world, engine, rows, o.repeats),
            fmt::format("bare products of {} rows with a block's matrices", rows)};
  }
  if (plan.nvme_shards > 0) {
    return {static_cast<double>(plan.nvme_shards), median(m.bare_reads),
            "bare reads of the same file between the runs: " + engine.nvme_method()};
  }
  if (plan.host_shards > 0 && cpu) {
    return {static_cast<double>(plan.host_shards), memcpy_rate(plan, o.repeats),
            "memcpy of as many bytes by one thread"};
  }
  if (plan.host_shards > 0) {
    return {static_cast<double>(plan.host_shards), limits[Link::kCopy],
            plan.splits() ? "bare copies of all pinned shards, of which the host multiplies a share"
                          : "bare copies of the same pinned shards, all ranks at once"};
  }
  if (m.staying_share() > 0.5) {
    return {static_cast<double>(plan.head_shard + plan.device_shards),
            limits[cpu ? Link::kProducts : Link::kDeviceMemory],
            cpu ? "bare products of one row with the own weights, all ranks at once"
                : "a bare copy in device memory, reads plus writes"};
  }
  if (world.size() > 1 && m.fetched.bytes[Link::kGather] > 0) {
    return {
        static_cast<double>(m.fetched.bytes[Link::kGather]) / static_cast<double>(m.fetched.passes),
        limits[Link::kGather], "bare all-gathers of as many shards, back to back"};
  }
  if (cpu && world.size() == 1) {
    const std::vector<RowBlockMatrix> matrices = resident_weights(engine);
    ThreadPool pool(threads_per_rank(1));
    double bytes = 0;
    for (const RowBlockMatrix& m : matrices) bytes += static_cast<double>(m.bytes());
    const auto read_all = [&] {
      for (const RowBlockMatrix& m : matrices) read_memory(pool, {m.data, m.bytes()});
    };
    read_all();
    std::vector<double> seconds;
    for (int i = 0; i < o.repeats; ++i) seconds.push_back(wall_seconds(read_all));
    return {bytes, bytes / median(seconds), "a read of the same memory by as many threads"};
  }
  double weights = static_cast<double>(plan.head_shard);
  for (const PartitionLayout& layout : plan.blocks) {
    weights += static_cast<double>(layout.gathered_bytes());
  }
  return {weights, limits[Link::kDeviceMemory], "a bare copy in device memory, reads plus writes"};
}

/// A row of a prompt sees half of its keys on average, in two products.
double attention_operations(const Engine& engine, std::int64_t prompt_tokens, double rows) {
  const ModelConfig& c = engine.model().config();
  const double mean_keys = static_cast<double>(prompt_tokens + 1) / 2;
  return 4 * static_cast<double>(c.layers * c.heads * c.head_dim) * rows * mean_keys;
}

ordered_json line_of(World& world, Engine& engine, const Options& o, std::int64_t batch,
                     const Measured& m, const Bound& bound, const RunLimits& limits,
                     std::size_t peak_device, std::size_t peak_host) {
  const bool prompts = o.prompt_tokens > 1;
  const double achieved = bound.amount / m.pass();
  ordered_json line = {{"name", prompts ? "prompt pass" : "pass"},
                       {"commit", o.commit},
                       {"machine", o.machine},
                       {"world", world.size()},
                       {"command", o.command},
                       {"backend", engine.backend().name},
                       {"model", o.model},
                       {"dtype", name_of(engine.plan().compute_dtype)},
                       {"weight_format", name_of(engine.plan().block_format)},
                       {"head_format", name_of(engine.plan().head_format)},
                       {"tier", o.tier},
                       {"travel", name_of(engine.plan().travel)},
                       {"staying_share", m.staying_share()},
                       {"replicated_blocks", engine.plan().replicated_count()},
                       {"batch", batch}};
  if (prompts) {
    line["prompt_tokens"] = o.prompt_tokens;
    line["rows_per_pass"] = m.rows;
    line["operations_per_pass"] = bound.amount;
  } else {
    line["bytes_per_pass"] = bound.amount;
  }
  line["pass_ms"] = m.pass() * 1e3;
  line["pass_ms_min"] = m.pass_seconds.front() * 1e3;
  line["pass_ms_max"] = m.pass_seconds.back() * 1e3;
  const char* const unit = prompts ? "tflop_s" : "gb_s";
  const double scale = prompts ? 1e-12 : 1e-9;
  line[fmt::format("achieved_{}", unit)] = achieved * scale;
  line[fmt::format("limit_{}", unit)] = bound.rate * scale;
  line["limit_how"] = bound.how;
  line["ratio"] = achieved / bound.rate;
  if (prompts) {
    const double attention = attention_operations(engine, o.prompt_tokens, m.rows);
    line["attention_operations_per_pass"] = attention;
    line["ratio_with_attention"] = (bound.amount + attention) / m.pass() / bound.rate;
  }
  const MemoryPlan& plan = engine.plan();
  if (!prompts && world.size() == 1 && plan.host_shards + plan.nvme_shards == 0) {
    const double seconds = bare_products_seconds(world, engine, batch, o.repeats);
    line["bare_products_ms"] = seconds * 1e3;
    line["ratio_to_bare_products"] = seconds / m.pass();
  }
  if (plan.splits()) {
    const double host =
        static_cast<double>(m.fetched.host_bytes) / static_cast<double>(m.fetched.passes);
    line["cpu_share"] = o.cpu_share;
    for (const HostShares::Point& p : engine.host_shares().points()) {
      line["cpu_shares"].push_back({{"rows", p.rows}, {"share", p.share}});
    }
    line["host_multiplied_bytes"] = host;
    line["host_multiplied_share"] = host / static_cast<double>(plan.host_shards);
  }
  line["product_gb_s"] = limits[Link::kProducts] * 1e-9;
  line["resident_bytes"] = engine.plan().device_shards;
  line["peak_device_bytes"] = peak_device;
  line["peak_host_bytes"] = peak_host;
  line["load_s"] = engine.load_seconds();
  return line;
}

/// Where the time of a pass goes, longest first; on standard error.
void print_profile(const TimingOps& timing, std::int64_t batch, const Measured& m) {
  std::vector<std::pair<std::string, TimingOps::Time>> rows;
  double sum = 0;
  for (const auto& [name, time] : timing.times()) {
    rows.emplace_back(name, time);
    sum += time.seconds;
  }
  std::ranges::sort(rows, std::greater<>(), [](const auto& row) { return row.second.seconds; });
  const auto passes = static_cast<double>(m.fetched.passes) * 2;  // with the warm-up
  fmt::print(stderr, "batch {}: a pass of {:.3f} ms, {:.3f} ms of it in operations\n", batch,
             m.pass() * 1e3, sum / passes * 1e3);
  for (const auto& [name, time] : rows) {
    fmt::print(stderr, "  {:<32} {:8.1f} us a pass, {:7.2f} us each\n", name,
               time.seconds / passes * 1e6, time.seconds / static_cast<double>(time.count) * 1e6);
  }
}

int run(World& world, const Options& o) {
  set_log(LogLevel::kQuiet, "");
  const RunConfig config = config_of(o);
  Backend backend = make_backend(world, config);
  TimingOps* timing = nullptr;
  if (o.profile) {
    auto ops = std::make_unique<TimingOps>(*backend.device, std::move(backend.ops));
    timing = ops.get();
    backend.ops = std::move(ops);
  }
  Engine engine(world, std::move(backend), config);
  std::vector<Measured> measured;
  for (std::int64_t batch : o.batch) {
    if (timing != nullptr) timing->start(false);
    measured.push_back(measure(world, engine, o, batch));
    if (timing == nullptr) continue;
    timing->start(true);
    Options once = o;
    once.repeats = 1;
    const Measured m = measure(world, engine, once, batch);
    if (world.rank() == 0) print_profile(*timing, batch, m);
    timing->start(false);
  }
  const MemoryInfo device = engine.backend().device->memory();
  const std::size_t peak_device =
      engine.backend().device->is_host() ? 0 : device.total_bytes - device.free_bytes;
  const std::size_t peak_host = peak_memory_bytes();
  const RunLimits limits = measure_run_limits(engine);
  for (std::size_t i = 0; i < measured.size(); ++i) {
    const Bound bound = bound_of(world, engine, o, measured[i], limits);
    if (world.rank() != 0) continue;
    const ordered_json line =
        line_of(world, engine, o, o.batch[i], measured[i], bound, limits, peak_device, peak_host);
    fmt::print("{}\n", line.dump());
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace zi

int main(int argc, char** argv) {
  return zi::benchmark_main<zi::Options>(
      argc, argv, "pass_benchmark", "Whole passes, and the bare link that bounds them",
      [](CLI::App& app, zi::Options& o) {
        app.add_option("--model", o.model, "a folder with a config.json");
        app.add_option("--tier", o.tier, "where the blocks rest")
            ->check(CLI::IsMember({"device", "host", "nvme"}));
        app.add_option("--batch", o.batch, "lanes of a rank; several, one line each")
            ->delimiter(',')
            ->check(CLI::PositiveNumber);
        app.add_option("--prompt-tokens", o.prompt_tokens, "tokens of each prompt")
            ->check(CLI::PositiveNumber);
        app.add_option("--max-pass-tokens", o.max_pass_tokens, "rows of a pass");
        const std::map<std::string, zi::WeightChoice> formats = {
            {"stored", zi::WeightChoice::kStored},
            {"int8", zi::WeightChoice::kInt8},
            {"int4", zi::WeightChoice::kInt4}};
        app.add_option("--weight-format", o.weight_format, "as of zero-infer")
            ->transform(CLI::Transformer(formats));
        app.add_option("--head-format", o.head_format, "as of zero-infer")
            ->transform(CLI::Transformer(formats));
        app.add_option("--compute-dtype", o.compute_dtype, "as of zero-infer, and of the weights")
            ->check(CLI::IsMember({"bfloat16", "float16", "float32"}));
        app.add_option("--gpu-weight-budget", o.gpu_weight_budget, "as of zero-infer");
        app.add_option("--kv-budget", o.kv_budget, "as of zero-infer");
        app.add_option("--cpu-share", o.cpu_share, "as of zero-infer");
        const std::map<std::string, zi::Travel> ways = {{"weights", zi::Travel::kWeights},
                                                        {"activations", zi::Travel::kActivations},
                                                        {"auto", zi::Travel::kAuto}};
        app.add_option("--travel", o.travel, "as of zero-infer, but weights by default")
            ->transform(CLI::Transformer(ways));
        app.add_option("--replicated-blocks", o.replicated_blocks, "as of zero-infer");
        app.add_option("--nvme-path", o.nvme_path, "folder of the shard files");
        app.add_option("--passes", o.passes, "passes of a run")->check(CLI::PositiveNumber);
        app.add_flag("--profile", o.profile, "times every operation of further passes, on stderr");
      });
}
