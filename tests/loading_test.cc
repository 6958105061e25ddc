// What a start reads, and that shards come out alike on every way to their memory.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "engine/memory_planner.h"
#include "engine/model_weights.h"
#include "engine/weight_loader.h"
#include "forwarding_device.h"
#include "synthetic_checkpoint.h"
#include "zero_infer/backend.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"
#include "zero_infer/model.h"

namespace zi {
namespace {

/// A checkpoint that counts the bytes asked of each tensor, and fails when told to.
class CountedSource final : public WeightSource {
 public:
  explicit CountedSource(std::unique_ptr<WeightSource> source) : source_(std::move(source)) {}
  void read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
            void* dst) const override {
    if (tensor.name == failing) throw IoError("offset 17: broken");
    source_->read(tensor, first, count, to, dst);
    const std::lock_guard lock(mutex_);
    read_[tensor.name] += static_cast<std::size_t>(count) * 2;
  }
  bool contains(const std::string& name) const override { return source_->contains(name); }
  DType stored_dtype(const std::string& name) const override { return source_->stored_dtype(name); }
  std::uint64_t identity() const override { return source_->identity(); }
  std::string describe() const override { return source_->describe(); }

  std::map<std::string, std::size_t> take() const {
    const std::lock_guard lock(mutex_);
    return std::exchange(read_, {});
  }

  std::string failing;  // reads of this tensor throw

 private:
  std::unique_ptr<WeightSource> source_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::size_t> read_;
};

/// A device whose memory the host does not write, as a GPU's.
class FarDevice final : public test::ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;
  bool is_host() const override { return false; }
  Buffer allocate_pinned(std::size_t bytes) override {
    pinned_bytes += bytes;
    return ForwardingDevice::allocate_pinned(bytes);
  }
  std::size_t pinned_bytes = 0;
};

/// Bytes that this process has asked of files with read and pread.
std::size_t bytes_asked() {
  std::ifstream in("/proc/self/io");
  std::string key;
  for (std::size_t value = 0; in >> key >> value;) {
    if (key == "rchar:") return value;
  }
  ADD_FAILURE() << "/proc/self/io has no rchar";
  return 0;
}

class Loading : public ::testing::Test {
 protected:
  Loading() {
    const auto shape = directory_.path() / "shape.json";
    test::write_text(
        shape, R"({"model_type":"bloom","n_embed":192,"n_head":4,"n_layer":9,"vocab_size":999})");
    test::write_synthetic_checkpoint(shape, directory_.path() / "model",
                                     {.shards = 2, .seed = 5, .tokenizer = {}});
    model_ = make_model(ModelConfig::load(directory_.path() / "model"), false);
    source_.emplace(open_checkpoint(directory_.path() / "model", "transformer."));
  }

  MemoryPlan plan(const std::string& tier, int world,
                  const WeightFormat& format = DType::kBFloat16) const {
    PlanInput in;
    in.model = model_.get();
    in.block_format = in.head_format = format;
    in.world = in.local_size = world;
    in.device_is_host = true;
    in.device_free = in.host_free = std::size_t{8} << 30;
    RunConfig config;
    config.batch_size = {1};
    config.cpu_offload = tier == "host";
    if (tier == "nvme") config.nvme_offload_path = directory_.path() / "nvme";
    return make_plan(in, config);
  }
  std::unique_ptr<ModelWeights> load(const MemoryPlan& plan, int rank, int world,
                                     Device* device = nullptr) {
    const LoadOptions options{.rank = rank,
                              .world = world,
                              .threads = 3,
                              .observer = observer_,
                              .model_name = "tiny",
                              .nvme_path = directory_.path() / "nvme"};
    return std::make_unique<ModelWeights>(device != nullptr ? *device : *device_, *ops_, *source_,
                                          model_->spec(), plan, options);
  }
  /// The head and all blocks, one after the other.
  std::vector<std::byte> shards(const MemoryPlan& plan, const ModelWeights& weights) {
    std::vector<std::byte> all(weights.head_shard(), weights.head_shard() + plan.head_shard);
    const auto stream = device_->make_stream("copies");
    for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
      std::vector<std::byte> shard(plan.blocks[b].shard_bytes());
      weights.stores()[b]->start_read(static_cast<int>(b));
      weights.stores()[b]->finish_read(static_cast<int>(b), shard.data(), *stream);
      stream->synchronize();
      all.insert(all.end(), shard.begin(), shard.end());
    }
    return all;
  }

  test::TemporaryDirectory directory_;
  std::unique_ptr<Device> device_ = make_cpu_device();
  std::unique_ptr<Ops> ops_ = make_cpu_ops(1);
  std::unique_ptr<Model> model_;
  std::optional<CountedSource> source_;
  LoadObserver observer_;
};

TEST_F(Loading, GivesTheSameShardsInEveryTierAndThroughPinnedPieces) {
  for (const auto& [format, world] : {std::pair{WeightFormat(DType::kBFloat16), 1},
                                      {DType::kBFloat16, 3},
                                      {kInt8Weights, 1},
                                      {kInt4Weights, 3}}) {
    SCOPED_TRACE(name_of(format));
    for (int rank = 0; rank < world; ++rank) {
      const MemoryPlan on_device = plan("device", world, format);
      std::vector<std::byte> expected;
      for (const auto* unit : {&on_device.head.front()}) {
        expected.resize(unit->shard_bytes());
        ShardReader(*source_, *unit, rank).read(0, expected);
      }
      for (const PartitionLayout& block : on_device.blocks) {
        std::vector<std::byte> shard(block.shard_bytes());
        ShardReader(*source_, block, rank).read(0, shard);
        expected.insert(expected.end(), shard.begin(), shard.end());
      }
      const auto in_place = load(on_device, rank, world);
      EXPECT_TRUE(shards(on_device, *in_place) == expected) << world;
      {
        FarDevice far(make_cpu_device());
        const auto sent = load(on_device, rank, world, &far);
        EXPECT_TRUE(shards(on_device, *sent) == expected) << world;
        EXPECT_GE(far.pinned_bytes, WeightLoader::kPinnedBytes) << "nothing was sent in pieces";
      }
      for (const char* tier : {"host", "nvme", "nvme"}) {  // the second nvme start is a warm one
        const MemoryPlan elsewhere = plan(tier, world, format);
        const auto weights = load(elsewhere, rank, world);
        EXPECT_TRUE(shards(elsewhere, *weights) == expected) << world << " " << tier;
      }
    }
  }
}

TEST_F(Loading, TellsItsObserverOfEveryByteUpToTheWhole) {
  for (const char* tier : {"device", "host", "nvme"}) {
    std::mutex mutex;
    std::size_t most = 0, whole = 0, calls = 0;
    observer_ = [&](std::size_t done, std::size_t all) {
      const std::scoped_lock lock(mutex);
      ++calls;
      most = std::max(most, done);
      whole = all;
    };
    load(plan(tier, 1, DType::kBFloat16), 0, 1);
    EXPECT_GT(calls, 1U) << tier;
    EXPECT_GT(whole, 0U);
    EXPECT_EQ(most, whole) << tier;
  }
}

TEST_F(Loading, PutsAnEmbeddingOfItsOwnWhereThePlanSaysAndReadsEachOfItsRowsOnce) {
  model_ = make_model(ModelConfig::load(directory_.path() / "model"), true);
  source_.emplace(make_dummy_weights(5, DType::kBFloat16, true));
  const TensorSpec& embedding = model_->spec().embedding;
  for (const int world : {1, 3}) {
    for (const bool far_away : {false, true}) {
      for (const Tier tier : {Tier::kDevice, Tier::kHost}) {
        std::size_t read = 0;
        for (int rank = 0; rank < world; ++rank) {
          MemoryPlan p = plan("device", world);
          p.embedding_tier = tier;
          ASSERT_GT(p.embedding_shard, 0u);
          std::vector<std::byte> expected(p.embedding_shard);
          ShardReader(*source_, p.embedding_layout(), rank).read(0, expected);
          FarDevice far(make_cpu_device());
          (void)source_->take();
          const auto weights = load(p, rank, world, far_away ? &far : nullptr);
          read += source_->take().at(embedding.name);
          EXPECT_EQ(std::memcmp(weights->embedding_shard(), expected.data(), expected.size()), 0)
              << world << " ranks, " << name_of(tier);
        }
        EXPECT_EQ(read, static_cast<std::size_t>(embedding.elements()) * 2);
      }
    }
  }
}

TEST_F(Loading, AFirstStartReadsEachMatrixOnce) {
  for (const auto& [tier, format] : {std::pair<const char*, WeightFormat>{"device", kInt4Weights},
                                     {"device", DType::kBFloat16},
                                     {"host", DType::kBFloat16},
                                     {"nvme", DType::kBFloat16}}) {
    const MemoryPlan p = plan(tier, 1, format);
    (void)source_->take();
    (void)load(p, 0, 1);
    const auto read = source_->take();
    for (const UnitSpec& block : model_->spec().blocks) {
      for (const TensorSpec& t : block.matrices) {
        EXPECT_EQ(read.at(t.name), static_cast<std::size_t>(t.elements()) * 2) << t.name;
      }
    }
  }
}

TEST_F(Loading, AWarmStartReadsTheShardFilesHeaderAndNoMatrixOfABlock) {
  const MemoryPlan p = plan("nvme", 1);
  (void)load(p, 0, 1);
  (void)source_->take();
  const std::size_t before = bytes_asked();
  const auto weights = load(p, 0, 1);
  const std::size_t asked = bytes_asked() - before;
  const auto read = source_->take();
  for (const UnitSpec& block : model_->spec().blocks) {
    for (const TensorSpec& t : block.matrices) EXPECT_FALSE(read.contains(t.name)) << t.name;
  }
  // The head, the vectors (float32 in the plan) and a page or two around each; of 8 MB in the file.
  const std::size_t rest = p.head_shard + p.vectors + (std::size_t{256} << 10);
  EXPECT_LE(asked, rest);
  EXPECT_GT(std::filesystem::file_size(weights->shard_file()), 4 * rest);
}

TEST_F(Loading, AFailureReachesTheCallerFromEveryTier) {
  source_->failing = model_->spec().blocks[5].matrices[2].name;
  for (const char* tier : {"device", "host", "nvme"}) {
    FarDevice far(make_cpu_device());
    EXPECT_THROW(load(plan(tier, 1), 0, 1), IoError) << tier;
    EXPECT_THROW(load(plan(tier, 1), 0, 1, &far), IoError) << tier;
  }
  for (const auto& e : std::filesystem::recursive_directory_iterator(directory_.path() / "nvme")) {
    EXPECT_NE(e.path().extension(), ".shard") << "a shard file of a broken checkpoint";
  }
}

}  // namespace
}  // namespace zi
