// Passes of one rank alone, on the CPU backend with a device or ops that differ in one respect.

#include "engine/pass_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/forwarding_ops.h"
#include "engine/memory_planner.h"
#include "forwarding_device.h"
#include "synthetic_checkpoint.h"
#include "zero_infer/backend.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"
#include "zero_infer/model.h"

namespace zi {
namespace {

using ::testing::HasSubstr;

/// Counts what a runner takes of a device, and refuses to record graphs.
class WatchedDevice final : public test::ForwardingDevice {
 public:
  WatchedDevice() : ForwardingDevice(make_cpu_device()) {}
  std::unique_ptr<Stream> make_stream(const std::string& name, StreamPriority priority) override {
    priorities[name] = priority;
    return ForwardingDevice::make_stream(name, priority);
  }
  std::unique_ptr<Event> make_event() override {
    ++events;
    return ForwardingDevice::make_event();
  }
  std::unique_ptr<Graph> record(Stream&, const std::function<void()>&) override {
    ++recordings;
    throw CudaError("cudaGraphInstantiate failed: out of memory");
  }
  void mark_begin(const std::string& name) override { marks.push_back(name); }
  void mark_end() override { ++marks_ended; }

  std::map<std::string, StreamPriority> priorities;
  int events = 0;
  int recordings = 0;
  std::vector<std::string> marks;
  int marks_ended = 0;
};

/// Ops that say that they can stand in a graph.
class RecordableOps final : public ForwardingOps {
 public:
  using ForwardingOps::ForwardingOps;
  bool recordable() const override { return true; }
};

/// Weights that count how often they are read.
class CountingSource final : public WeightSource {
 public:
  explicit CountingSource(std::unique_ptr<WeightSource> source) : source_(std::move(source)) {}
  void read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
            void* dst) const override {
    ++reads;
    source_->read(tensor, first, count, to, dst);
  }
  bool contains(const std::string& name) const override { return source_->contains(name); }
  DType stored_dtype(const std::string& name) const override { return source_->stored_dtype(name); }
  std::uint64_t identity() const override { return source_->identity(); }
  std::string describe() const override { return source_->describe(); }

  mutable std::atomic<int> reads = 0;

 private:
  std::unique_ptr<WeightSource> source_;
};

class PassRunnerTest : public ::testing::Test {
 protected:
  static constexpr std::int64_t kVocabulary = 250;
  static constexpr std::int64_t kLanes = 2;
  static constexpr int kLayers = 3;

  PassRunnerTest() {
    const auto shape = directory_.path() / "shape.json";
    test::write_text(
        shape, R"({"model_type":"bloom","n_embed":64,"n_head":4,"n_layer":3,"vocab_size":250})");
    test::write_synthetic_checkpoint(shape, directory_.path() / "model",
                                     {.shards = 1, .seed = 5, .tokenizer = {}});
    model_ = make_model(ModelConfig::load(directory_.path() / "model"), false);
    source_ = std::make_unique<CountingSource>(
        open_checkpoint(directory_.path() / "model", "transformer."));
  }
  /// The same shape with an embedding that is not the head.
  void untie() {
    model_ = make_model(ModelConfig::load(directory_.path() / "model"), true);
    source_ = std::make_unique<CountingSource>(make_dummy_weights(5, DType::kBFloat16, true));
  }

  MemoryPlan plan(bool cpu_offload) const {
    PlanInput in;
    in.model = model_.get();
    in.compute_dtype = DType::kBFloat16;
    in.device_free = in.host_free = std::size_t{8} << 30;
    RunConfig config;
    config.batch_size = {kLanes};
    config.kv_budget = std::size_t{1} << 20;
    config.cpu_offload = cpu_offload;
    if (cpu_offload) config.gpu_weight_budget = 0;
    return make_plan(in, config);
  }

  /// The tokens of `passes` passes of two prompts. `before` is told of each pass.
  std::vector<std::vector<std::int32_t>> tokens(
      Device& device, Ops& ops, int passes, bool cpu_offload = false,
      const std::function<void(PassRunner&, int)>& before = {}) {
    const MemoryPlan planned = plan(cpu_offload);
    const ModelWeights weights(device, ops, *source_, model_->spec(), planned,
                               {.model_name = "tiny", .nvme_path = {}});
    PassRunner runner({.device = device,
                       .ops = ops,
                       .communicator = nullptr,
                       .peers = nullptr,
                       .model = *model_,
                       .weights = weights,
                       .plan = planned,
                       .rank = 0,
                       .world = 1,
                       .vocabulary = kVocabulary,
                       .drawable = kVocabulary});
    Scheduler scheduler(kLanes, planned.pass_tokens, planned.kv_pages, false);
    std::vector<Sequence*> sequences;
    for (std::int32_t s = 0; s < kLanes; ++s) {
      auto sequence = std::make_unique<Sequence>(Prompt{}, tokenizer_);
      sequence->tokens = {5 + s, 77, 130, 9};
      sequence->prompt.index = static_cast<std::uint64_t>(s);
      sequences.push_back(scheduler.admit(std::move(sequence)));
    }
    for (int pass = 0; pass < passes; ++pass) {
      if (before) before(runner, pass);
      run_pass(runner, scheduler, pass + 1 == passes);
    }
    if (before) before(runner, passes);
    std::vector<std::vector<std::int32_t>> out;
    for (const Sequence* sequence : sequences) out.push_back(sequence->tokens);
    return out;
  }

  static void run_pass(PassRunner& runner, Scheduler& scheduler, bool last) {
    const std::vector<Chunk> chunks = scheduler.compose();
    std::vector<std::int32_t> ids;
    std::vector<std::int32_t> logits_rows;
    std::vector<SampleRow> samples;
    std::int32_t row = -1;
    for (const Chunk& chunk : chunks) {
      const auto first = chunk.sequence->tokens.begin() + chunk.first;
      ids.insert(ids.end(), first, first + chunk.count);
      logits_rows.push_back(row += static_cast<std::int32_t>(chunk.count));
      samples.emplace_back().history = chunk.sequence->tokens;
    }
    runner.run(
        {chunks, ids, logits_rows, samples, static_cast<std::int64_t>(samples.size()), last});
    for (std::size_t i = 0; i < chunks.size(); ++i) {
      scheduler.advance(chunks[i]);
      chunks[i].sequence->tokens.push_back(runner.results().ids[i]);
    }
  }

  test::TemporaryDirectory directory_;
  Tokenizer tokenizer_ = Tokenizer::bytes();
  std::unique_ptr<Model> model_;
  std::unique_ptr<CountingSource> source_;
};

TEST_F(PassRunnerTest, ReadsNoRowOfTheEmbeddingFromTheCheckpointOnceTheWeightsAreLoaded) {
  for (const bool tied : {true, false}) {
    if (!tied) untie();
    const auto device = make_cpu_device();
    const auto ops = make_cpu_ops(1);
    constexpr int kPasses = 5;
    int at_start = 0;
    tokens(*device, *ops, kPasses, false, [&](PassRunner&, int pass) {
      if (pass == 0) at_start = source_->reads;
    });
    EXPECT_GT(at_start, 0);
    EXPECT_EQ(source_->reads, at_start) << "tied: " << tied;
  }
}

TEST_F(PassRunnerTest, TakesTheRowsOfTheEmbeddingAndNotOfAHeadOfItsOwn) {
  // The head in both places: what a tied model of these values gives.
  class HeadAsEmbedding final : public WeightSource {
   public:
    void read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
              void* dst) const override {
      TensorSpec from = tensor;
      if (from.name == "word_embeddings.weight") from.name = "lm_head.weight";
      source_->read(from, first, count, to, dst);
    }
    bool contains(const std::string&) const override { return true; }
    DType stored_dtype(const std::string&) const override { return DType::kBFloat16; }
    std::uint64_t identity() const override { return 1; }
    std::string describe() const override { return "a head in both places"; }

   private:
    std::unique_ptr<WeightSource> source_ = make_dummy_weights(5, DType::kBFloat16, true);
  };
  const auto device = make_cpu_device();
  const auto ops = make_cpu_ops(1);
  constexpr int kPasses = 12;
  untie();
  const auto own = tokens(*device, *ops, kPasses);
  source_ = std::make_unique<CountingSource>(std::make_unique<HeadAsEmbedding>());
  const auto both = tokens(*device, *ops, kPasses);
  EXPECT_NE(own, both);
  model_ = make_model(ModelConfig::load(directory_.path() / "model"), false);
  ASSERT_TRUE(model_->spec().tied());
  EXPECT_EQ(tokens(*device, *ops, kPasses), both);
}

TEST_F(PassRunnerTest, GoesOnWithoutGraphsAndSaysSoOnceWhereTheyCannotBeRecorded) {
  constexpr int kPasses = 40;  // the shape changes with every page of 16 tokens
  const auto plain_device = make_cpu_device();
  const auto plain_ops = make_cpu_ops(1);
  const auto want = tokens(*plain_device, *plain_ops, kPasses);
  WatchedDevice device;
  RecordableOps ops(make_cpu_ops(1));
  ::testing::internal::CaptureStderr();
  const auto got = tokens(device, ops, kPasses);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(got, want);
  EXPECT_EQ(device.recordings, 1);
  const std::string warning = "warning: passes run without CUDA graphs: cudaGraphInstantiate";
  EXPECT_THAT(said, HasSubstr(warning));
  EXPECT_EQ(said.find(warning), said.rfind(warning)) << said;
}

TEST_F(PassRunnerTest, LetsGathersGoFirstAndNothingElse) {
  WatchedDevice device;
  const auto ops = make_cpu_ops(1);
  tokens(device, *ops, 1);
  ASSERT_TRUE(device.priorities.contains("compute"));
  for (const auto& [name, priority] : device.priorities) {
    EXPECT_EQ(priority == StreamPriority::kFirst, name == "gather") << name;
  }
}

TEST_F(PassRunnerTest, TellsAnObserverOfEachOfItsPassesOnce) {
  constexpr int kFirst = 2, kEnd = 6, kPasses = 8;
  for (const bool offload : {false, true}) {
    WatchedDevice device;
    const auto ops = make_cpu_ops(1);
    std::vector<PassTimes> told;
    tokens(device, *ops, kPasses, offload, [&](PassRunner& runner, int pass) {
      if (pass == kFirst) runner.observe([&](const PassTimes& times) { told.push_back(times); });
      if (pass == kEnd) runner.observe({});
    });
    ASSERT_EQ(told.size(), static_cast<std::size_t>(kEnd - kFirst));
    double before = 0;
    for (std::size_t i = 0; i < told.size(); ++i) {
      const PassTimes& times = told[i];
      EXPECT_EQ(times.pass, i);
      EXPECT_EQ(times.rows, kLanes);
      EXPECT_GE(times.host.begin, before);
      before = times.host.end;
      ASSERT_EQ(times.units.size(), static_cast<std::size_t>(kLayers));
      EXPECT_LE(times.embed.begin, times.embed.end);
      EXPECT_LE(times.embed.end, times.units.front().compute.begin);
      EXPECT_LE(times.units.back().compute.end, times.head.begin);
      EXPECT_LT(times.head.begin, times.head.end);
      EXPECT_FALSE(times.graph.happened());
      for (const UnitTimes& unit : times.units) {
        EXPECT_EQ(unit.moved[Link::kCopy].happened(), offload);
      }
    }
    EXPECT_EQ(std::ranges::count(device.marks, "pass 3"), 1);
    EXPECT_EQ(std::ranges::count(device.marks, "unit 2"), kEnd - kFirst);
    EXPECT_EQ(static_cast<std::size_t>(device.marks_ended), device.marks.size());
  }
}

TEST_F(PassRunnerTest, TakesNoEventsAndSetsNoMarksWithoutAnObserver) {
  const auto ops = make_cpu_ops(1);
  WatchedDevice one, many;
  tokens(one, *ops, 1);
  tokens(many, *ops, 10);
  EXPECT_EQ(one.events, many.events);
  EXPECT_TRUE(many.marks.empty());
}

}  // namespace
}  // namespace zi
