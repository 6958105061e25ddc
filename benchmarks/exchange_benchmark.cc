// The exchange around a product whose matrix stays: inputs gathered and results returned, without
// the product. By collective calls, by the memory of peers, and by NCCL's device API; enqueued one
// by one and from a graph, each checked before it is timed; one JSON line on stdout for each row
// count.
//
//   mpirun -np N build/benchmarks/exchange_benchmark [--hidden N] [--columns N] [--rows N,N..]
//     [--backend auto|cpu|cuda] [--repeats N] [--no-device-api]
//
// NVLink multicast is not used, unless NCCL_NVLS_ENABLE=1 in the environment asks for it. A row has
// `hidden` bfloat16 inputs and `columns` float32 results, of which each rank makes its part. The
// limit is what a rank receives at the rate of gathers of a large block.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdlib>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "benchmark_main.h"
#include "engine/backend_choice.h"
#include "engine/row_exchange.h"
#include "exchange_check.h"
#include "run_options.h"
#include "window_exchange.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

constexpr int kExchanges = 100;  // of a timed run
constexpr std::size_t kGatherBytes = std::size_t{64} << 20;

struct Options : RunOptions {
  Options() { repeats = 9; }

  std::int64_t hidden = 4096;
  std::int64_t columns = 12288;
  std::vector<std::int64_t> rows = {1, 8, 64, 512};
  bool device_api = true;
};

class Exchanges {
 public:
  Exchanges(World& world, const Options& options)
      : world_(&world), options_(&options), backend_(make_backend(world, config_of(options))) {
    compute_ = backend_.device->make_stream("compute");
    exchange_ = backend_.device->make_stream("gather", StreamPriority::kFirst);
    start_ = backend_.device->make_event();
    end_ = backend_.device->make_event();
    if (options.device_api && backend_.name == "cuda") open_windows();
  }

  nlohmann::ordered_json line(std::int64_t rows);

 private:
  static RunConfig config_of(const Options& o) {
    RunConfig config;
    config.backend = o.choice();
    return config;
  }
  std::int64_t slice() const { return options_->columns / world_->size(); }
  RowExchange::Row row() const {
    return {static_cast<std::size_t>(options_->hidden) * size_of(DType::kBFloat16),
            static_cast<std::size_t>(slice()) * sizeof(float)};
  }
  /// Collective. For all row counts; none, with a line that says why, where there can be none.
  void open_windows();
  /// Collective. Seconds of one of `enqueue`'s kExchanges on the slowest rank: the median.
  double seconds(const std::function<void()>& enqueue);
  /// Collective. Null on all ranks where there is none on one.
  std::unique_ptr<Graph> graph_of(const std::function<void()>& enqueue);
  /// Bytes a second that a rank receives.
  double gather_rate();

  World* world_;
  const Options* options_;
  Backend backend_;
  std::unique_ptr<Stream> compute_, exchange_;
  std::unique_ptr<Event> start_, end_;
  std::unique_ptr<WindowExchange> windows_;
};

void Exchanges::open_windows() {
#ifdef ZI_HAVE_CUDA
  const std::int64_t most = std::ranges::max(options_->rows);
  try {
    world_->all_or_none([&] {
      if ((row().input | row().result) % 16 == 0) return;
      throw ConfigError("inputs or results of a row are no multiple of 16 bytes");
    });
    windows_ = make_window_exchange(*world_, *backend_.device,
                                    RowExchange::room(row(), most, world_->size()).bytes());
  } catch (const PeerError&) {  // another rank says why
  } catch (const Error& error) {
    log_warning(fmt::format("NCCL's device API is not measured: {}", error.what()));
  }
#endif
}

double Exchanges::seconds(const std::function<void()>& enqueue) {
  std::vector<double> all;
  for (int i = 0; i <= options_->repeats; ++i) {
    world_->barrier();
    compute_->record(*start_);
    enqueue();
    compute_->record(*end_);
    compute_->synchronize();
    const double mine = backend_.device->elapsed_seconds(*start_, *end_);
    const double slowest = std::ranges::max(world_->all_gather(mine));
    if (i > 0) all.push_back(slowest / kExchanges);
  }
  std::ranges::sort(all);
  return all[all.size() / 2];
}

std::unique_ptr<Graph> Exchanges::graph_of(const std::function<void()>& enqueue) {
  std::unique_ptr<Graph> graph;
  try {
    graph = backend_.device->record(*compute_, enqueue);
  } catch (const Error& error) {
    log_warning(error.what());
  }
  const std::vector<char> made = world_->all_gather(static_cast<char>(graph ? 1 : 0));
  if (std::ranges::find(made, 0) != made.end()) return nullptr;
  return graph;
}

double Exchanges::gather_rate() {
  const auto ranks = static_cast<std::size_t>(world_->size());
  const Buffer blocks = backend_.communicator->allocate(*backend_.device, ranks * kGatherBytes);
  const std::byte* const own =
      blocks.data() + static_cast<std::size_t>(world_->rank()) * kGatherBytes;
  const double took = seconds([&] {
    for (int i = 0; i < kExchanges; ++i) {
      backend_.communicator->all_gather(own, blocks.data(), kGatherBytes, *compute_);
    }
  });
  return static_cast<double>((ranks - 1) * kGatherBytes) / took;
}

nlohmann::ordered_json Exchanges::line(std::int64_t rows) {
  const int ranks = world_->size();
  const std::array slices = {slice()};
  const RowExchange::Row row = this->row();
  const RowExchange::Room room = RowExchange::room(row, rows, ranks);
  Device& device = *backend_.device;
  const auto count = static_cast<std::size_t>(rows);
  const Buffer inputs = device.allocate(count * row.input);
  const Buffer results = device.allocate(count * row.result * static_cast<std::size_t>(ranks));
  const Buffer memory = device.allocate(room.bytes());
  ExchangeCheck check(*world_, device, rows, options_->hidden, options_->columns);
  nlohmann::ordered_json line = {
      {"name", "exchange"}, {"commit", options_->commit},   {"machine", options_->machine},
      {"world", ranks},     {"command", options_->command}, {"backend", backend_.name},
      {"rows", rows},       {"hidden", options_->hidden},   {"columns", options_->columns}};
  // Collective. Null where a way is not there, alone or in a graph.
  const auto measure = [&](const std::string& way, PeerExchange* peers, bool there) {
    const std::string alone = way + "_us";
    const std::string in_graph = way + "_in_graph_us";
    line[alone] = nullptr;
    line[in_graph] = nullptr;
    if (!there) return;
    RowExchange exchange(device, *backend_.ops, *backend_.communicator, peers, ranks, memory.data(),
                         room, *exchange_);
    const auto enqueue_check = [&] { check.enqueue(exchange, *compute_); };
    const auto enqueue = [&] {
      const RowExchange::Product product{inputs.data(), row.input, results.data(), DType::kFloat32,
                                         slices};
      for (int i = 0; i < kExchanges; ++i)
        exchange.run(
            product, rows, [](auto...) {}, *compute_);
    };
    check.run(way, enqueue_check, *compute_);
    line[alone] = seconds(enqueue) * 1e6;
    const auto checked = graph_of(enqueue_check);
    const auto graph = graph_of(enqueue);
    if (!checked || !graph) return;
    check.run(
        way + " in a graph", [&] { checked->launch(*compute_); }, *compute_);
    line[in_graph] = seconds([&] { graph->launch(*compute_); }) * 1e6;
  };
  measure("calls", nullptr, true);
  const auto peers = backend_.communicator->make_peer_exchange(device, room.bytes());
  measure("peers", peers.get(), peers != nullptr);
  const auto measure_windows = [&](const std::string& way, WindowExchange::Meet meet) {
    if (windows_) windows_->meet(meet);
    try {
      measure(way, windows_.get(), windows_ != nullptr);
    } catch (const Error& error) {
      if (!world_->leaving_together()) throw;
      if (dynamic_cast<const PeerError*>(&error) == nullptr) {
        log_warning(fmt::format("left out: {}", error.what()));
      }
    }
  };
  measure_windows("device_api", WindowExchange::Meet::kBeforeAndAfter);
  measure_windows("device_api_in_turn", WindowExchange::Meet::kAfter);
  const Exchanged moved = RowExchange::cost(row, rows, room, ranks);
  const double rate = gather_rate();
  line["received_bytes"] = moved.bytes;
  line["limit_us"] = static_cast<double>(moved.bytes) / rate * 1e6;
  line["limit_how"] = "at the rate of gathers of 64 MiB a rank";
  line["limit_gb_s"] = rate * 1e-9;
  return line;
}

int run(World& world, const Options& o) {
  set_log(LogLevel::kNormal, "");
  if (world.size() == 1) throw ConfigError("one rank exchanges nothing: mpirun -np N");
  if (o.columns % world.size() != 0) throw ConfigError("--columns: not a multiple of the ranks");
  Exchanges exchanges(world, o);
  for (const std::int64_t rows : o.rows) {
    const auto line = exchanges.line(rows);
    if (world.rank() == 0) fmt::print("{}\n", line.dump());
  }
  return 0;
}

}  // namespace
}  // namespace zi

int main(int argc, char** argv) {
  ::setenv("NCCL_NVLS_ENABLE", "0", 0);  // no NVLink multicast; before any thread
  return zi::benchmark_main<zi::Options>(
      argc, argv, "exchange_benchmark",
      "What an exchange takes around a product whose matrix stays",
      [](CLI::App& app, zi::Options& o) {
        app.add_option("--hidden", o.hidden, "inputs of a row")->check(CLI::PositiveNumber);
        app.add_option("--columns", o.columns, "results of a row")->check(CLI::PositiveNumber);
        app.add_option("--rows", o.rows, "of each rank")
            ->delimiter(',')
            ->check(CLI::PositiveNumber);
        app.add_flag("!--no-device-api", o.device_api, "leave NCCL's device API out");
      });
}
