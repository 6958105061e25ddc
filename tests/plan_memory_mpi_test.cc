// The plan against the memory that an engine then takes: every allocation of a run is counted.

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "engine/engine.h"
#include "forwarding_device.h"
#include "mpi_world.h"
#include "synthetic_checkpoint.h"
#include "zero_infer/error.h"

namespace zi::test {
namespace {

/// Bytes that live now, and the most that ever did. Any thread may count.
class Count {
 public:
  void add(std::size_t bytes) {
    const std::size_t now = live_ += bytes;
    std::size_t peak = peak_;
    while (now > peak && !peak_.compare_exchange_weak(peak, now)) {
    }
  }
  void take(std::size_t bytes) { live_ -= bytes; }
  std::size_t peak() const { return peak_; }

 private:
  std::atomic<std::size_t> live_{0};
  std::atomic<std::size_t> peak_{0};
};

struct Counts {
  Count device;
  Count pinned;
  Count both;
};

/// A device that counts what it gives.
class CountingDevice final : public ForwardingDevice {
 public:
  CountingDevice(std::unique_ptr<Device> inner, std::shared_ptr<Counts> counts)
      : ForwardingDevice(std::move(inner)), counts_(std::move(counts)) {}

  Buffer allocate(std::size_t bytes) override {
    return counted(ForwardingDevice::allocate(bytes), counts_->device);
  }
  Buffer allocate_for_loading(std::size_t bytes) override {
    return counted(ForwardingDevice::allocate_for_loading(bytes), counts_->device);
  }
  Buffer allocate_pinned(std::size_t bytes) override {
    return counted(ForwardingDevice::allocate_pinned(bytes), counts_->pinned);
  }
  Buffer allocate_pinned_or_plain(std::size_t bytes) override {
    return counted(ForwardingDevice::allocate_pinned_or_plain(bytes), counts_->pinned);
  }

  /// Memory of this device that somebody else took.
  Buffer counted_on_device(Buffer buffer) { return counted(std::move(buffer), counts_->device); }

 private:
  Buffer counted(Buffer buffer, Count& count) {
    const std::size_t bytes = buffer.bytes();
    if (bytes == 0) return buffer;
    count.add(bytes);
    counts_->both.add(bytes);
    const auto held = std::make_shared<Buffer>(std::move(buffer));
    return {held->data(), bytes, [held, bytes, &count, counts = counts_](void*) {
              *held = {};
              count.take(bytes);
              counts->both.take(bytes);
            }};
  }

  std::shared_ptr<Counts> counts_;
};

/// A communicator whose own memory is counted with the device's, wherever it takes it.
class CountingCommunicator final : public Communicator {
 public:
  explicit CountingCommunicator(std::unique_ptr<Communicator> inner) : inner_(std::move(inner)) {}

  void all_gather(const void* send, void* recv, std::size_t bytes, Stream& stream) override {
    inner_->all_gather(send, recv, bytes, stream);
  }
  void all_to_all(const void* send, void* recv, std::size_t bytes, Stream& stream) override {
    inner_->all_to_all(send, recv, bytes, stream);
  }
  Buffer allocate(Device& device, std::size_t bytes) override {
    auto& counting = dynamic_cast<CountingDevice&>(device);
    return counting.counted_on_device(inner_->allocate(counting.inner(), bytes));
  }
  void check() override { inner_->check(); }

 private:
  std::unique_ptr<Communicator> inner_;
};

/// Some 190 MB of weights: 8 blocks of 14 MB and a head of 79 MB.
constexpr const char* kSmall = R"({
  "model_type": "bloom", "hidden_size": 768, "n_layer": 8, "n_head": 12,
  "vocab_size": 51200, "layer_norm_epsilon": 1e-5})";
/// The same with a head and an embedding of 79 MB each.
constexpr const char* kUntied = R"({
  "model_type": "llama", "hidden_size": 768, "num_hidden_layers": 8, "num_attention_heads": 12,
  "intermediate_size": 2304, "vocab_size": 51200, "rms_norm_eps": 1e-5,
  "max_position_embeddings": 2048, "tie_word_embeddings": false})";
/// bloom-7b1 with 10 of its 30 blocks: 4 GB of them, 2 of the head.
constexpr const char* kLarge = R"({
  "model_type": "bloom", "hidden_size": 4096, "n_layer": 10, "n_head": 32,
  "vocab_size": 250880, "layer_norm_epsilon": 1e-5})";

/// All ranks of a test share a folder with a config.json, and a checkpoint unless the weights are
/// dummies; rank 0 makes it and takes it away.
class SharedModel {
 public:
  explicit SharedModel(const char* shape, bool dummy = false) {
    if (world().rank() == 0) {
      std::string name = std::filesystem::temp_directory_path() / "zero-infer-XXXXXX";
      path_ = mkdtemp(name.data());
      const auto config = std::filesystem::path(path_) / "config.json";
      zi::test::write_text(config, shape);
      if (!dummy) {
        zi::test::SyntheticOptions options;
        options.tokenizer = std::filesystem::path(ZI_TEST_DATA) / "bloom-kjv/tokenizer.json";
        zi::test::write_synthetic_checkpoint(config, path_ + "/model", options);
      }
    }
    path_ = world().broadcast(path_, 0);
  }
  ~SharedModel() {
    world().barrier();
    if (world().rank() == 0) std::filesystem::remove_all(path_);
  }
  std::string folder() const { return path_; }
  std::string model() const { return path_ + "/model"; }
  std::string nvme() const { return path_ + "/nvme"; }

 private:
  std::string path_;
};

/// Within 3% of the plan: it neither under- nor overstates.
void expect_near(std::size_t taken, std::size_t planned, const std::string& what) {
  const auto plan = static_cast<double>(planned);
  EXPECT_NEAR(static_cast<double>(taken), plan, 0.03 * plan) << what;
}

struct Case {
  std::string name;
  bool cpu_offload = false;
  bool nvme = false;
  bool dummy = false;
  std::optional<std::size_t> device_budget = {};
  std::int64_t logprobs = 0;
  Travel travel = Travel::kWeights;
  double cpu_share = 0;
  std::int64_t replicated = 0;
};

RunConfig config_of(const Case& c, const SharedModel& shared) {
  RunConfig config;
  config.model = shared.model();
  config.quiet = true;
  config.backend = wants_cuda() ? BackendChoice::kCuda : BackendChoice::kCpu;
  config.load_format = c.dummy ? LoadFormat::kDummy : LoadFormat::kAuto;
  config.cpu_offload = c.cpu_offload;
  if (c.nvme) config.nvme_offload_path = shared.nvme();
  config.gpu_weight_budget = c.device_budget;
  config.logprobs = c.logprobs;
  config.travel = c.travel;
  config.cpu_share = c.cpu_share;
  config.replicated_blocks = c.replicated;
  config.kv_budget = 16 << 20;  // so that weights weigh
  config.max_new_tokens = 4;
  return config;
}

/// Collective. A run whose allocations are counted.
struct CountedRun {
  explicit CountedRun(const RunConfig& config) {
    Backend backend = make_backend(world(), config);
    const std::size_t before = backend.device->memory().free_bytes;
    backend.device = std::make_unique<CountingDevice>(std::move(backend.device), counts);
    if (backend.communicator) {
      backend.communicator =
          std::make_unique<CountingCommunicator>(std::move(backend.communicator));
    }
    Engine engine(world(), std::move(backend), config);
    const auto source = prompts_from_flags({"In the beginning", "Jesus wept."});
    MemorySink sink;
    engine.generate({.source = source.get(),
                     .sink = &sink,
                     .lanes = config.batch_size.front(),
                     .options = engine.generation_options()});
    plan = engine.plan();
    missing = before - engine.backend().device->memory().free_bytes;
  }
  std::shared_ptr<Counts> counts = std::make_shared<Counts>();
  MemoryPlan plan;
  std::size_t missing = 0;  // of the device's free memory, afterwards
};

/// Why the backend cannot be had here; empty when it can.
std::string missing_backend() {
  RunConfig config;
  config.backend = wants_cuda() ? BackendChoice::kCuda : BackendChoice::kCpu;
  try {
    make_backend(world(), config);
    return "";
  } catch (const ConfigError& error) {
    return error.what();
  } catch (const PeerError&) {
    return "another rank cannot have it";
  }
}

void expect_as_planned(const CountedRun& run, const std::string& name) {
  const std::string what = fmt::format("{}\n{}", name, run.plan.table());
  expect_near(run.counts->device.peak(), run.plan.device_bytes(), "device, " + what);
  expect_near(run.counts->pinned.peak(), run.plan.host_bytes(), "pinned, " + what);
  expect_near(run.counts->both.peak(), run.plan.rank_bytes(), "both, " + what);
}

TEST(PlannedMemory, IsWhatARunTakesOnEveryTier) {
  if (const std::string why = missing_backend(); !why.empty()) GTEST_SKIP() << why;
  const SharedModel shared(kSmall);
  const std::size_t some = (std::size_t{40} << 20) / static_cast<std::size_t>(world().size());
  for (const Case& c :
       {Case{.name = "resident"}, Case{.name = "resident, dummies", .dummy = true},
        Case{.name = "resident, with log-probabilities", .logprobs = 100},
        Case{.name = "host", .cpu_offload = true, .device_budget = 0},
        Case{.name = "nvme", .nvme = true, .device_budget = 0},
        Case{.name = "device and host", .cpu_offload = true, .device_budget = some},
        Case{.name = "device and nvme", .nvme = true, .device_budget = some},
        Case{.name = "resident, weights stay", .travel = Travel::kActivations},
        Case{.name = "device and host, weights stay",
        .cpu_offload = true,
        .device_budget = some,
        .travel = Travel::kActivations},
        Case{.name = "either way", .travel = Travel::kAuto},
        Case{.name = "device and host, either way",
        .cpu_offload = true,
        .device_budget = some,
        .travel = Travel::kAuto},
        Case{.name = "3 of 8 replicated", .replicated = 3},
        Case{.name = "all replicated", .replicated = 8},
        Case{.name = "all replicated, either way", .travel = Travel::kAuto, .replicated = 8},
        Case{.name = "host, which has a share of products",
        .cpu_offload = true,
        .device_budget = 0,
        .travel = Travel::kActivations,
        .cpu_share = 0.5}}) {
    expect_as_planned(CountedRun(config_of(c, shared)), c.name);
  }
}

TEST(PlannedMemory, IsWhatARunWithAnEmbeddingOfItsOwnTakes) {
  if (const std::string why = missing_backend(); !why.empty()) GTEST_SKIP() << why;
  const SharedModel shared(kUntied, true);
  for (const Case& c :
       {Case{.name = "resident", .dummy = true},
        Case{.name = "host", .cpu_offload = true, .dummy = true, .device_budget = 0},
        Case{.name = "nvme", .nvme = true, .dummy = true, .device_budget = 0}}) {
    RunConfig config = config_of(c, shared);
    config.model = shared.folder();
    const CountedRun run(config);
    EXPECT_GE(run.plan.embedding_shard * static_cast<std::size_t>(world().size()),
              51200u * 768 * 2);
    expect_as_planned(run, c.name);
  }
}

TEST(PlannedMemory, IsWhatAGpuThenLacks) {
  if (!wants_cuda()) GTEST_SKIP() << "on the CPU backend others take memory, too";
  if (world().size() > 1) GTEST_SKIP() << "NCCL takes memory of its own while it works";
  if (const std::string why = missing_backend(); !why.empty()) GTEST_SKIP() << why;
  const SharedModel shared(kLarge, true);
  RunConfig config = config_of({.name = "", .dummy = true}, shared);
  config.model = shared.folder();
  const CountedRun run(config);
  expect_near(run.missing, run.plan.device_bytes(), run.plan.table());
}

}  // namespace
}  // namespace zi::test
