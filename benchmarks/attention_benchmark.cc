// Attention of one layer beside what bounds it, a JSON line on stdout for each case: over long
// contexts the read of keys and values, next to a bare copy in the same device's memory; for
// prompts its products, next to nothing but the clock.
//
//   build/benchmarks/attention_benchmark [--lanes N] [--context N] [--lengths NxKEYS[,NxKEYS..] ..]
//     [--rows N] [--heads N] [--kv-heads N] [--head-dim N] [--alibi] [--backend auto|cpu|cuda]
//     [--repeats N]
//
// Each lane has `rows` rows in the pass and `context` keys after it, in shuffled pages; with
// --lengths, each value is a case: `1x32768,63x128` is one lane of 32,768 keys among 63 of 128. The
// calls go around several layers' keys and values, as those of a pass do, so that no cache holds
// them. The time to compare with is kv_bytes over limit_gb_s: of that case, with 32 heads of keys
// and values of 128 elements, 669 MB over the 4.2 TB/s of an H200, 159 us; with 8, 40 us.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <bit>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "benchmark_main.h"
#include "call_seconds.h"
#include "engine/backend_choice.h"
#include "measure/bare_rates.h"
#include "run_options.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

struct Options : RunOptions {
  Options() { repeats = 20; }

  int lanes = 32;
  int context = 8192;
  std::vector<std::string> lengths;
  int rows = 1;
  int heads = 32;
  int kv_heads = 8;
  int head_dim = 128;
  bool alibi = false;
};

constexpr DType kType = DType::kBFloat16;

/// The keys of each lane in `1x32768,63x128`: the groups mixed evenly, as lanes come to be.
std::vector<std::int32_t> parse_lengths(const std::string& text) {
  std::vector<std::pair<double, std::int32_t>> lanes;  // place, keys
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    int count = 0, keys = 0, used = 0;
    const std::string group = text.substr(begin, end - begin);
    if (std::sscanf(group.c_str(), "%dx%d%n", &count, &keys, &used) != 2 || count < 1 || keys < 1 ||
        static_cast<std::size_t>(used) != group.size()) {
      throw ConfigError(fmt::format("--lengths: '{}' in '{}' is not lanes x keys", group, text));
    }
    for (int i = 0; i < count; ++i) lanes.emplace_back((i + 0.5) / count, keys);
    begin = end + 1;
  }
  std::ranges::stable_sort(lanes, {}, [](const auto& lane) { return lane.first; });
  std::vector<std::int32_t> contexts;
  for (const auto& [place, keys] : lanes) contexts.push_back(keys);
  return contexts;
}

/// A batch with keys and values of several layers, on the device.
class Case {
 public:
  Case(const Backend& backend, Stream& stream, const Options& o,
       const std::vector<std::int32_t>& contexts)
      : ops_(*backend.ops), stream_(stream), heads_(o.heads), context_(contexts) {
    kv_ = {nullptr, kType, o.kv_heads, o.head_dim};
    const auto lanes = static_cast<int>(contexts.size());
    const auto longest = *std::ranges::max_element(contexts);
    const auto pages_of = [](int keys) {
      return static_cast<std::size_t>(ceil_div(keys, kKvPageTokens));
    };
    std::size_t pages = 0;
    for (const int keys : contexts) pages += pages_of(keys);
    layer_bytes_ = pages * kv_.page_bytes();
    // Ten times the second-level cache of a large GPU.
    layers_ = static_cast<std::size_t>(
        ceil_div(std::int64_t{512} << 20, static_cast<std::int64_t>(layer_bytes_)));
    Device& device = *backend.device;
    memory_ = device.allocate(layers_ * layer_bytes_);
    const std::int64_t elements = std::int64_t{lanes} * o.rows * o.heads * o.head_dim;
    q_ = device.allocate(static_cast<std::size_t>(elements) * sizeof(float));
    out_ = device.allocate(static_cast<std::size_t>(elements) * size_of(kType));
    const UniformValues values{.key = 1, .half_width = 1, .stored = kType};
    ops_.fill_uniform(values, 0, static_cast<std::int64_t>(memory_.bytes() / size_of(kType)),
                      memory_.data(), kType, stream);
    ops_.fill_uniform(values, 0, elements, q_.data(), DType::kFloat32, stream);

    for (int s = 0; s <= lanes; ++s) begin_.push_back(s * o.rows);
    std::vector<std::int32_t> free(pages);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), std::mt19937(1));
    const std::size_t width = std::bit_ceil(pages_of(longest));  // as the engine's tables
    std::vector<std::int32_t> tables(contexts.size() * width);
    for (std::size_t s = 0; s < contexts.size(); ++s) {
      for (std::size_t page = 0; page < pages_of(contexts[s]); ++page) {
        tables[s * width + page] = free.back();
        free.pop_back();
      }
    }
    const auto upload = [&](const auto& host) {
      Buffer buffer = device.allocate(host.size() * sizeof(host[0]));
      device.copy(buffer.data(), host.data(), buffer.bytes(), stream);
      return buffer;
    };
    const std::vector<float> slopes(static_cast<std::size_t>(o.heads), 0.01f);
    device_begin_ = upload(begin_);
    device_context_ = upload(context_);
    device_tables_ = upload(tables);
    if (o.alibi) slopes_ = upload(slopes);
    stream.synchronize();
    batch_ = {.tokens = lanes * o.rows,
              .sequences = lanes,
              .row_begin = device_begin_.as<std::int32_t>(),
              .context = device_context_.as<std::int32_t>(),
              .block_tables = device_tables_.as<std::int32_t>(),
              .max_pages = static_cast<int>(width),
              .host_row_begin = begin_,
              .host_context = context_};
  }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  /// Enqueues attention of the next layer.
  void attend() {
    kv_.data = memory_.data() + next_++ % layers_ * layer_bytes_;
    ops_.attention(q_.as<float>(), heads_, batch_, kv_, slopes_.as<float>(), out_.data(), kType,
                   stream_);
  }

  /// Of the keys and values that a call must read.
  double kv_bytes() const {
    double keys = 0;
    for (const int context : context_) keys += context;
    return keys * static_cast<double>(kv_.page_bytes()) / kKvPageTokens;
  }
  std::size_t layers() const { return layers_; }

 private:
  Ops& ops_;
  Stream& stream_;
  int heads_;
  KvLayer kv_;
  std::size_t layer_bytes_ = 0, layers_ = 1, next_ = 0;
  std::vector<std::int32_t> begin_, context_;
  Buffer memory_, q_, out_, device_begin_, device_context_, device_tables_, slopes_;
  RaggedBatch batch_;
};

void run_case(World& world, const Backend& backend, Stream& stream, const Options& o,
              const std::string& lengths, const std::vector<std::int32_t>& contexts,
              const BareRate& copy) {
  if (o.rows > *std::ranges::min_element(contexts)) {
    throw ConfigError("--rows: more than the keys of a lane");
  }
  Case layers(backend, stream, o, contexts);
  const double bytes = layers.kv_bytes();
  const auto seconds = call_seconds(*backend.device, stream, o.repeats, layers.layers(), bytes,
                                    [&] { layers.attend(); });
  const double median = seconds[seconds.size() / 2];
  // A row sees the keys up to its own: two products of head_dim elements each.
  double seen = 0;
  for (const int context : contexts) seen += o.rows * (context - (o.rows - 1) / 2.0);
  const double operations = 4.0 * seen * o.heads * o.head_dim;
  nlohmann::ordered_json line = {{"name", "attention"},
                                 {"commit", o.commit},
                                 {"machine", o.machine},
                                 {"world", world.size()},
                                 {"command", o.command},
                                 {"backend", backend.name},
                                 {"dtype", name_of(kType)},
                                 {"lanes", contexts.size()},
                                 {"rows", o.rows},
                                 {"context", *std::ranges::max_element(contexts)},
                                 {"lengths", lengths},
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
  std::fflush(stdout);
}

int run(World& world, Options o) {
  set_log(LogLevel::kQuiet, "");
  if (o.lengths.empty()) o.lengths.push_back(fmt::format("{}x{}", o.lanes, o.context));
  std::vector<std::vector<std::int32_t>> cases;
  for (const std::string& lengths : o.lengths) cases.push_back(parse_lengths(lengths));
  RunConfig config;
  config.backend = o.choice();
  const Backend backend = make_backend(world, config);
  const auto stream = backend.device->make_stream("compute");
  const BareRate copy = memory_copy_rate(world, *backend.device, std::size_t{1} << 30, *stream, {});
  for (std::size_t i = 0; i < cases.size(); ++i) {
    run_case(world, backend, *stream, o, o.lengths[i], cases[i], copy);
  }
  return 0;
}

}  // namespace
}  // namespace zi

int main(int argc, char** argv) {
  return zi::benchmark_main<zi::Options>(
      argc, argv, "attention_benchmark", "Attention of one layer, and the copy rate that bounds it",
      [](CLI::App& app, zi::Options& o) {
        app.add_option("--lanes", o.lanes, "sequences")->check(CLI::PositiveNumber);
        app.add_option("--context", o.context, "keys of each")->check(CLI::PositiveNumber);
        app.add_option("--lengths", o.lengths, "cases instead: lanes x keys, as 1x32768,63x128")
            ->excludes("--lanes")
            ->excludes("--context");
        app.add_option("--rows", o.rows, "of each in the pass")->check(CLI::PositiveNumber);
        app.add_option("--heads", o.heads, "of queries")->check(CLI::PositiveNumber);
        app.add_option("--kv-heads", o.kv_heads, "of keys and values")->check(CLI::PositiveNumber);
        app.add_option("--head-dim", o.head_dim, "elements of a head")->check(CLI::PositiveNumber);
        app.add_flag("--alibi", o.alibi, "with slopes");
      });
}
