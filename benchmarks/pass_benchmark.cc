// Whole passes of a model's shape with dummy weights, one JSON line a run on stdout of rank 0: the
// time of a decoding pass beside the bare link that bounds it, measured in the same process over as
// many bytes.
//
//   build/benchmarks/pass_benchmark --model config/models/bloom-560m --tier device|host|nvme
//   [--batch N]
//                                   [--nvme-path DIR] [--repeats N] [--passes N]
//   mpirun -np 2 ...: the gathered bytes beside a bare all-gather

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <oneapi/dnnl/dnnl.hpp>

#include "engine/engine.h"
#include "engine/summary.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

struct Options {
  std::string model = "config/models/bloom-560m";
  std::string tier = "device";
  std::string nvme_path = "/tmp";
  std::string commit = "unknown";
  std::string machine = "unknown";
  std::int64_t batch = 1;
  int repeats = 10;
  int passes = 8;
};

double seconds_of(const std::function<void()>& step) {
  const auto start = std::chrono::steady_clock::now();
  step();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// oneDNN's own product of one row with weights as they lie, over a model's matrices in the order
/// of a pass.
class PlainProducts {
 public:
  explicit PlainProducts(const MemoryPlan& plan) : stream_(engine_) {
    for (const PartitionLayout& block : plan.blocks) add(block);
    add(plan.head.front());
    std::size_t longest = 0, widest = 0;
    for (const Product& p : products_) {
      longest = std::max(longest, static_cast<std::size_t>(p.cols));
      widest = std::max(widest, static_cast<std::size_t>(p.rows));
    }
    weights_.resize(bytes_ / 2);
    for (std::size_t i = 0; i < weights_.size(); ++i) {  // bfloat16 of ordinary size, none alike
      weights_[i] = static_cast<std::uint16_t>(0x3c00u + (i * 2654435761u >> 16) % 512);
    }
    input_.assign(longest, 0x3f80);
    output_.resize(widest);
  }

  std::size_t bytes() const { return bytes_; }
  void run() {
    for (Product& p : products_) {
      p.primitive.execute(stream_,
                          {{DNNL_ARG_SRC, {p.source, engine_, input_.data()}},
                           {DNNL_ARG_WEIGHTS, {p.weights, engine_, weights_.data() + p.first}},
                           {DNNL_ARG_DST, {p.product, engine_, output_.data()}}});
    }
    stream_.wait();
  }

 private:
  struct Product {
    std::int64_t rows, cols;
    std::size_t first;
    dnnl::memory::desc source, weights, product;
    dnnl::matmul primitive;
  };
  void add(const PartitionLayout& layout) {
    using Memory = dnnl::memory;
    for (const PartitionLayout::Matrix& m : layout.matrices()) {
      const std::int64_t rows = m.tensor.shape[0], cols = m.tensor.shape[1];
      const Memory::desc source({1, cols}, Memory::data_type::bf16, Memory::dims{cols, 1});
      const Memory::desc weights({cols, rows}, Memory::data_type::bf16, Memory::dims{1, cols});
      const Memory::desc product({1, rows}, Memory::data_type::f32, Memory::dims{rows, 1});
#if DNNL_VERSION_MAJOR >= 3
      const dnnl::matmul::primitive_desc made(engine_, source, weights, product);
#else
      const dnnl::matmul::primitive_desc made({source, weights, product}, engine_);
#endif
      products_.push_back({rows, cols, bytes_ / 2, source, weights, product, dnnl::matmul(made)});
      bytes_ += static_cast<std::size_t>(rows * cols) * 2;
    }
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_;
  std::vector<Product> products_;
  std::vector<std::uint16_t> weights_;
  std::vector<std::uint16_t> input_;
  std::vector<float> output_;
  std::size_t bytes_ = 0;
};

/// One thread's memcpy over as many bytes as the host tier copies in a pass, in pieces of a shard.
double memcpy_rate(const MemoryPlan& plan, int repeats) {
  const std::size_t shard = plan.blocks.front().shard_bytes();
  std::vector<char> from(plan.host_shards, 1), to(2 * shard, 0);
  std::vector<double> seconds;
  for (int i = 0; i <= repeats; ++i) {
    const double took = seconds_of([&] {
      for (std::size_t at = 0, slot = 0; at < from.size(); at += shard, slot ^= 1) {
        std::memcpy(to.data() + slot * shard, from.data() + at, shard);
      }
    });
    if (i > 0) seconds.push_back(took);
  }
  return static_cast<double>(plan.host_shards) / median(seconds);
}

RunConfig config_of(const Options& o) {
  RunConfig config;
  config.model = o.model;
  config.load_format = LoadFormat::kDummy;
  config.quiet = true;
  config.ignore_eos = true;
  config.batch_size = {o.batch};
  config.max_new_tokens = o.passes;
  config.cpu_offload = o.tier == "host";
  if (o.tier == "nvme") config.nvme_offload_path = o.nvme_path;
  return config;
}

int run(World& world, const Options& o) {
  set_log(LogLevel::kQuiet, "");
  const RunConfig config = config_of(o);
  Engine engine(world, make_backend(world, config), config);
  std::vector<double> pass_seconds;
  FetchStats fetched;
  const auto lanes = static_cast<std::size_t>(o.batch * world.size());
  for (int i = 0; i <= o.repeats; ++i) {
    const auto source = prompts_from_flags(std::vector<std::string>(lanes, "a"));
    MemorySink sink;
    const Engine::Outcome done = engine.generate({.source = source.get(),
                                                  .sink = &sink,
                                                  .lanes = o.batch,
                                                  .options = engine.generation_options(),
                                                  .stop_signal = [] { return 0; }});
    fetched = done.fetched;
    if (i > 0) pass_seconds.push_back(done.stats.seconds / static_cast<double>(done.stats.passes));
  }
  const double pass = median(pass_seconds);
  const std::size_t peak = peak_memory_bytes();
  const MemoryPlan& plan = engine.plan();
  const Limits limits = engine.measure_limits();
  double bytes = 0, limit = 0;
  std::string how;
  if (world.size() > 1) {
    bytes = static_cast<double>(fetched.gathered_bytes) / static_cast<double>(fetched.passes);
    limit = limits.gather;
    how = "bare MPI all-gather of a block's shards";
  } else if (o.tier == "device") {
    PlainProducts plain(plan);
    std::vector<double> seconds;
    plain.run();
    for (int i = 0; i < o.repeats; ++i) seconds.push_back(seconds_of([&] { plain.run(); }));
    bytes = static_cast<double>(plain.bytes());
    limit = bytes / median(seconds);
    how = "plain oneDNN products of one row over as many bytes of weights";
  } else if (o.tier == "host") {
    bytes = static_cast<double>(plan.host_shards);
    limit = memcpy_rate(plan, o.repeats);
    how = "memcpy of as many bytes by one thread";
  } else {
    bytes = static_cast<double>(plan.nvme_shards);
    limit = limits.read;
    how = "bare read of the same file: " + engine.nvme_method();
  }
  if (world.rank() != 0) return 0;
  std::ranges::sort(pass_seconds);
  const nlohmann::ordered_json line = {
      {"name", "pass"},
      {"commit", o.commit},
      {"machine", o.machine},
      {"world", world.size()},
      {"command",
       fmt::format("pass_benchmark --model {} --tier {} --batch {}", o.model, o.tier, o.batch)},
      {"model", o.model},
      {"dtype", name_of(plan.compute_dtype)},
      {"tier", o.tier},
      {"batch", o.batch},
      {"bytes_per_pass", bytes},
      {"pass_ms", pass * 1e3},
      {"pass_ms_min", pass_seconds.front() * 1e3},
      {"pass_ms_max", pass_seconds.back() * 1e3},
      {"achieved_gb_s", bytes / pass * 1e-9},
      {"limit_gb_s", limit * 1e-9},
      {"limit_how", how},
      {"ratio", bytes / pass / limit},
      {"product_limit_gb_s", limits.product * 1e-9},
      {"peak_host_bytes", peak},
      {"load_s", engine.load_stats().seconds}};
  fmt::print("{}\n", line.dump());
  return 0;
}

}  // namespace
}  // namespace zi

int main(int argc, char** argv) {
  zi::World world(&argc, &argv);
  try {
    zi::Options o;
    CLI::App app("Whole passes beside the bare link that bounds them");
    app.add_option("--model", o.model, "a folder with a config.json");
    app.add_option("--tier", o.tier, "where the blocks rest")
        ->check(CLI::IsMember({"device", "host", "nvme"}));
    app.add_option("--batch", o.batch, "lanes of a rank")->check(CLI::PositiveNumber);
    app.add_option("--nvme-path", o.nvme_path, "folder of the shard files");
    app.add_option("--repeats", o.repeats, "timed runs")->check(CLI::PositiveNumber);
    app.add_option("--passes", o.passes, "passes of a run")->check(CLI::PositiveNumber);
    app.add_option("--commit", o.commit, "stands in the result");
    app.add_option("--machine", o.machine, "stands in the result");
    CLI11_PARSE(app, argc, argv);
    return zi::run(world, o);
  } catch (const std::exception& error) {
    zi::log_error(error.what());
    world.abort(1);
  }
}
