// Sampling from rows of logits beside what bounds it, a JSON line on stdout for each kind of
// logits, settings and number of rows: the read of the logits, next to a bare copy in the device's
// memory.
//
//   build/benchmarks/sample_benchmark [--vocabulary N] [--rows N[,N..]] [--backend auto|cpu|cuda]
//     [--repeats N]
//
// Peaked logits are those of a model that is sure of its next token: a few dozen ids hold nearly
// all of the mass. Flat ones leave it with most of the vocabulary. The ids drawn from peaked ones
// are compared with the host's first. A call takes as long as its launches at least: on a GPU,
// greedy rows show it. The time to compare with is logits_bytes over limit_gb_s: of one row of
// 250,880 ids, 1.0 MB over the 4.2 TB/s of an H200, 0.24 us.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "benchmark_main.h"
#include "engine/backend_choice.h"
#include "measure/bare_rates.h"
#include "run_options.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"
#include "zero_infer/sampler.h"

// Settings name what differs from greedy; the rest has its default.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace zi {
namespace {

struct Options : RunOptions {
  Options() { repeats = 20; }

  std::int64_t vocabulary = 250880;
  std::vector<std::int64_t> rows = {1, 8, 64};
};

struct Settings {
  std::string name;
  SampleRow row;
};

const Settings kSettings[] = {
    {"greedy", {}},
    {"greedy, 20 best reported", {.top = 20}},
    {"temperature 1", {.temperature = 1}},
    {"min-p 0.05", {.temperature = 1, .min_p = 0.05f}},
    {"top-k 50", {.temperature = 1, .top_k = 50}},
    {"top-p 0.9", {.temperature = 1, .top_p = 0.9f}},
    {"top-k 50, top-p 0.9", {.temperature = 1, .top_k = 50, .top_p = 0.9f}},
};
constexpr int kMostReported = 20;

/// (rows, vocabulary).
std::vector<float> logits_of(bool peaked, std::int64_t rows, std::int64_t vocabulary) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, peaked ? 2.0f : 1.0f);
  std::vector<float> logits(static_cast<std::size_t>(rows * vocabulary));
  for (float& x : logits) x = normal(random);
  if (!peaked) return logits;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (int i = 0; i < 40; ++i) {
      const auto id = static_cast<std::int64_t>(random() % static_cast<unsigned>(vocabulary));
      logits[static_cast<std::size_t>(row * vocabulary + id)] = 20 - 0.25f * static_cast<float>(i);
    }
  }
  return logits;
}

class Case {
 public:
  Case(const Backend& backend, Stream& stream, const Settings& settings, std::int64_t rows,
       std::int64_t vocabulary, const Buffer& logits)
      : ops_(*backend.ops), stream_(stream), vocabulary_(vocabulary), logits_(logits.as<float>()) {
    const auto count = static_cast<std::size_t>(rows);
    for (std::size_t i = 0; i < count; ++i) {
      rows_.push_back(settings.row);
      rows_.back().sequence = i;
    }
    memory_ = backend.device->allocate_pinned(count * (2 + 2 * kMostReported) * 4);
    results_.ids = memory_.as<std::int32_t>();
    results_.logprobs = memory_.as<float>() + count;
    results_.top = kMostReported;
    results_.top_ids = memory_.as<std::int32_t>() + 2 * count;
    results_.top_logprobs = memory_.as<float>() + (2 + kMostReported) * count;
  }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  /// Enqueues one call.
  void sample() { ops_.sample(logits_, vocabulary_, vocabulary_, rows_, results_, stream_); }

  /// Throws Error where the last call's ids are not the host's.
  void check(const std::vector<float>& logits) const {
    const auto vocabulary = static_cast<std::size_t>(vocabulary_);
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const auto want =
          sample_row({logits.data() + i * vocabulary, vocabulary}, rows_[i], {}, {}).id;
      if (results_.ids[i] == want) continue;
      throw Error(fmt::format("sample_benchmark: row {} of {} got the id {}, on the host {}", i,
                              rows_.size(), results_.ids[i], want));
    }
  }

 private:
  Ops& ops_;
  Stream& stream_;
  std::int64_t vocabulary_;
  const float* logits_;
  std::vector<SampleRow> rows_;
  Buffer memory_;
  SampleResults results_;
};

/// Seconds of a call in each of the repeats, ascending.
std::vector<double> call_seconds(Device& device, Stream& stream, int repeats, Case& rows) {
  // As many as the host may be ahead of a GPU. It enqueues them behind a copy, so that its own time
  // is not measured; in a pass it is ahead by all of the blocks.
  constexpr int kCalls = 4;
  constexpr std::size_t kCopied = std::size_t{1} << 30;
  const Buffer memory = device.is_host() ? Buffer{} : device.allocate(2 * kCopied);
  const auto timed = [&] {
    if (!device.is_host()) device.copy(memory.data() + kCopied, memory.data(), kCopied, stream);
    return stream_seconds(device, stream, [&] {
      for (int i = 0; i < kCalls; ++i) rows.sample();
    });
  };
  // An idle GPU takes some 50 ms to come to its full clocks.
  for (double warm = 0; warm < 0.1;) warm += wall_seconds(timed);
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) seconds.push_back(timed() / kCalls);
  std::ranges::sort(seconds);
  return seconds;
}

int run(World& world, const Options& o) {
  set_log(LogLevel::kQuiet, "");
  RunConfig config;
  config.backend = o.choice();
  const Backend backend = make_backend(world, config);
  Device& device = *backend.device;
  const auto stream = device.make_stream("compute");
  const BareRate copy = memory_copy_rate(world, device, std::size_t{1} << 30, *stream, {});
  for (const bool peaked : {true, false}) {
    const auto host = logits_of(peaked, *std::ranges::max_element(o.rows), o.vocabulary);
    const Buffer logits = device.allocate(host.size() * sizeof(float));
    device.copy(logits.data(), host.data(), logits.bytes(), *stream);
    for (const Settings& settings : kSettings) {
      for (const std::int64_t rows : o.rows) {
        Case measured(backend, *stream, settings, rows, o.vocabulary, logits);
        measured.sample();
        stream->synchronize();
        if (peaked) measured.check(host);
        const auto seconds = call_seconds(device, *stream, o.repeats, measured);
        const double median = seconds[seconds.size() / 2];
        const double bytes = static_cast<double>(rows * o.vocabulary) * sizeof(float);
        const nlohmann::ordered_json line = {
            {"name", "sample"},
            {"commit", o.commit},
            {"machine", o.machine},
            {"world", world.size()},
            {"command", o.command},
            {"backend", backend.name},
            {"logits", peaked ? "peaked" : "flat"},
            {"settings", settings.name},
            {"rows", rows},
            {"vocabulary", o.vocabulary},
            {"logits_bytes", bytes},
            {"us", median * 1e6},
            {"us_min", seconds.front() * 1e6},
            {"us_max", seconds.back() * 1e6},
            {"achieved_gb_s", bytes / median * 1e-9},
            {"limit_gb_s", copy.slowest * 1e-9},
            {"limit_how", "a bare copy in device memory, reads plus writes"},
            {"ratio", bytes / median / copy.slowest}};
        fmt::print("{}\n", line.dump());
        std::fflush(stdout);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace zi

int main(int argc, char** argv) {
  return zi::benchmark_main<zi::Options>(
      argc, argv, "sample_benchmark",
      "Sampling by settings and rows, and the copy rate that bounds it",
      [](CLI::App& app, zi::Options& o) {
        app.add_option("--vocabulary", o.vocabulary, "ids")->check(CLI::PositiveNumber);
        app.add_option("--rows", o.rows, "sampled together")
            ->delimiter(',')
            ->check(CLI::PositiveNumber);
      });
}
