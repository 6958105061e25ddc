// Attention of one layer beside what bounds it, one JSON line on stdout: over long contexts the
// read of keys and values, next to a bare copy in the same device's memory; for prompts its
// products, next to nothing but the clock.
//
//   build/benchmarks/attention_benchmark [--lanes N] [--context N] [--rows N] [--heads N]
//     [--kv-heads N] [--head-dim N] [--alibi] [--backend auto|cpu|cuda] [--repeats N]
//
// Each lane has `rows` rows in the pass and `context` keys after it, in shuffled pages.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <vector>

#include "command_of.h"
#include "engine/backend_choice.h"
#include "measure/bare_rates.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

struct Options {
  int lanes = 32;
  int context = 8192;
  int rows = 1;
  int heads = 32;
  int kv_heads = 8;
  int head_dim = 128;
  bool alibi = false;
  std::string backend = "auto";
  int repeats = 20;
  std::string commit = "unknown";
  std::string machine = "unknown";
  std::string command;
};

int run(World& world, const Options& o) {
  set_log(LogLevel::kQuiet, "");
  if (o.rows > o.context) throw ConfigError("--rows: more than --context");
  RunConfig config;
  config.backend = o.backend == "cuda"  ? BackendChoice::kCuda
                   : o.backend == "cpu" ? BackendChoice::kCpu
                                        : BackendChoice::kAuto;
  const Backend backend = make_backend(world, config);
  Device& device = *backend.device;
  Ops& ops = *backend.ops;
  const auto stream = device.make_stream("compute");
  constexpr DType kType = DType::kBFloat16;

  const auto lanes = static_cast<std::size_t>(o.lanes);
  const auto pages = static_cast<std::size_t>(ceil_div(o.context, kKvPageTokens));
  KvLayer kv{nullptr, kType, o.kv_heads, o.head_dim};
  const Buffer memory = device.allocate(lanes * pages * kv.page_bytes());
  kv.data = memory.data();
  const std::int64_t elements = static_cast<std::int64_t>(o.lanes) * o.rows * o.heads * o.head_dim;
  const Buffer q = device.allocate(static_cast<std::size_t>(elements) * sizeof(float));
  const Buffer out = device.allocate(static_cast<std::size_t>(elements) * size_of(kType));
  const UniformValues values{.key = 1, .half_width = 1, .stored = kType};
  ops.fill_uniform(values, 0, static_cast<std::int64_t>(memory.bytes() / size_of(kType)),
                   memory.data(), kType, *stream);
  ops.fill_uniform(values, 0, elements, q.data(), DType::kFloat32, *stream);

  std::vector<std::int32_t> begin, tables(lanes * pages);
  for (int s = 0; s <= o.lanes; ++s) begin.push_back(s * o.rows);
  const std::vector<std::int32_t> context(lanes, o.context);
  std::iota(tables.begin(), tables.end(), 0);
  std::shuffle(tables.begin(), tables.end(), std::mt19937(1));
  const std::vector<float> slopes(static_cast<std::size_t>(o.heads), 0.01f);
  const auto upload = [&](const auto& host) {
    Buffer buffer = device.allocate(host.size() * sizeof(host[0]));
    device.copy(buffer.data(), host.data(), buffer.bytes(), *stream);
    return buffer;
  };
  const Buffer device_begin = upload(begin), device_context = upload(context),
               device_tables = upload(tables), device_slopes = upload(slopes);
  stream->synchronize();
  const RaggedBatch batch{.tokens = o.lanes * o.rows,
                          .sequences = o.lanes,
                          .row_begin = device_begin.as<std::int32_t>(),
                          .context = device_context.as<std::int32_t>(),
                          .block_tables = device_tables.as<std::int32_t>(),
                          .max_pages = static_cast<int>(pages),
                          .host_row_begin = begin,
                          .host_context = context};

  const auto bytes = static_cast<double>(memory.bytes());
  // As often as it takes to read 2 GB. Keys and values that fit the GPU's L2 stay there.
  const int layers = std::max(1, static_cast<int>(2e9 / bytes));
  std::vector<double> seconds;
  for (int i = 0; i <= o.repeats; ++i) {
    const double took = stream_seconds(device, *stream, [&] {
      for (int layer = 0; layer < layers; ++layer) {
        ops.attention(q.as<float>(), o.heads, batch, kv,
                      o.alibi ? device_slopes.as<float>() : nullptr, out.data(), kType, *stream);
      }
    });
    if (i > 0) seconds.push_back(took / layers);
  }
  std::ranges::sort(seconds);
  const double median = seconds[seconds.size() / 2];
  // A row sees the keys up to its own: two products of head_dim elements each.
  const double seen = o.rows * (o.context - (o.rows - 1) / 2.0);
  const double operations = 4.0 * o.lanes * seen * o.heads * o.head_dim;
  const BareRate copy = memory_copy_rate(world, device, std::size_t{1} << 30, *stream, {});
  nlohmann::ordered_json line = {{"name", "attention"},
                                 {"commit", o.commit},
                                 {"machine", o.machine},
                                 {"world", world.size()},
                                 {"command", o.command},
                                 {"backend", backend.name},
                                 {"dtype", name_of(kType)},
                                 {"lanes", o.lanes},
                                 {"rows", o.rows},
                                 {"context", o.context},
                                 {"heads", o.heads},
                                 {"kv_heads", o.kv_heads},
                                 {"head_dim", o.head_dim},
                                 {"kv_bytes", bytes},
                                 {"operations", operations},
                                 {"us", median * 1e6},
                                 {"us_min", seconds.front() * 1e6},
                                 {"us_max", seconds.back() * 1e6},
                                 {"achieved_gb_s", bytes / median * 1e-9},
                                 {"limit_gb_s", copy.slowest * 1e-9},
                                 {"limit_how", "a bare copy in device memory, reads plus writes"},
                                 {"ratio", bytes / median / copy.slowest},
                                 {"achieved_tflop_s", operations / median * 1e-12}};
  fmt::print("{}\n", line.dump());
  return 0;
}

}  // namespace
}  // namespace zi

int main(int argc, char** argv) {
  zi::World world(&argc, &argv);
  try {
    zi::Options o;
    o.command = zi::command_of(world, "attention_benchmark", argc, argv);
    CLI::App app("Attention of one layer, and the copy rate that bounds it");
    app.add_option("--lanes", o.lanes, "sequences")->check(CLI::PositiveNumber);
    app.add_option("--context", o.context, "keys of each")->check(CLI::PositiveNumber);
    app.add_option("--rows", o.rows, "of each in the pass")->check(CLI::PositiveNumber);
    app.add_option("--heads", o.heads, "of queries")->check(CLI::PositiveNumber);
    app.add_option("--kv-heads", o.kv_heads, "of keys and values")->check(CLI::PositiveNumber);
    app.add_option("--head-dim", o.head_dim, "elements of a head")->check(CLI::PositiveNumber);
    app.add_flag("--alibi", o.alibi, "with slopes");
    app.add_option("--backend", o.backend, "what computes")
        ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
    app.add_option("--repeats", o.repeats, "timed runs")->check(CLI::PositiveNumber);
    app.add_option("--commit", o.commit, "stands in the result");
    app.add_option("--machine", o.machine, "stands in the result");
    CLI11_PARSE(app, argc, argv);
    return zi::run(world, o);
  } catch (const std::exception& error) {
    zi::log_error(error.what());
    world.abort(1);
  }
}
