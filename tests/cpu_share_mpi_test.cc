// Runs in which the host's cores multiply a share of the weights that rest in its memory, against
// runs in which the device multiplies all of them: the same bits on the CPU.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/split_ops.h"
#include "engine_harness.h"
#include "model_runs.h"
#include "zero_infer/backend.h"
#include "zero_infer/error.h"

namespace zi::test {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class CpuShareTest : public ModelRuns {
 protected:
  /// Weights in host memory; where there are several ranks, those of each stay.
  RunConfig shared(std::optional<double> share) const {
    RunConfig run = config(world().size() > 1 ? Travel::kActivations : Travel::kWeights);
    run.cpu_offload = true;
    run.gpu_weight_budget = 0;
    run.cpu_share = share;
    return run;
  }
};

TEST_P(CpuShareTest, GivesTheBitsOfNoShare) {
  const auto all = prompts(10);
  const Played base = play(config(Travel::kWeights), all);
  EXPECT_EQ(base.outcome.fetched.host_bytes, 0u);
  for (const auto& [share, lanes] : {std::pair{0.7, 16}, std::pair{1.0, 1}}) {
    RunConfig run = shared(share);
    run.batch_size = {lanes};
    const Played other = play(run, all);
    expect_same(base, other, fmt::format("a share of {}, {} lanes", share, lanes));
    EXPECT_GT(other.outcome.fetched.host_bytes, 0u);
    EXPECT_EQ(other.outcome.fetched.bytes[Link::kCopy] == 0, share == 1);
  }
  RunConfig chunks = shared(0.6);
  chunks.max_pass_tokens = 5;  // chunks of prompts beside decoding lanes
  expect_same(base, play(chunks, all), "chunks of 5 rows");
  expect_same(base, play(shared(std::nullopt), all), "as measured");

  // What was fetched for a pass of few rows is completed for one of many, and the other way round.
  RunConfig by_rows = shared(std::nullopt);
  by_rows.max_pass_tokens = 16;
  expect_same(base,
              play(by_rows, all,
                   {.host_shares = HostShares(
                        std::vector<HostShares::Point>{{1, 0.9}, {3, 0.5}, {6, 0.3}, {9, 0}})}),
              "shares by rows");
}

INSTANTIATE_TEST_SUITE_P(Models, CpuShareTest, testing::ValuesIn(kModelCases),
                         [](const auto& info) { return info.param.name; });

/// Some of the models.
class CpuShareOfSomeModels : public CpuShareTest {};

TEST_P(CpuShareOfSomeModels, GivesTheBitsOfNoShareInEveryTier) {
  const auto all = prompts(8);
  const Played base = play(config(Travel::kWeights), all);
  for (const Placement& place : placements(shard_bytes())) {
    const Played other = play(placed(shared(0.5), place, folder_.path()), all);
    expect_same(base, other, place.name);
    EXPECT_EQ(other.outcome.fetched.host_bytes > 0, other.plan.host_shards > 0) << place.name;
  }
}

TEST_P(CpuShareOfSomeModels, IsNoneInPassesThatGather) {
  if (world().size() == 1) GTEST_SKIP() << "one rank gathers nothing";
  const auto all = prompts(8);
  const Played base = play(config(Travel::kWeights), all);
  RunConfig gathers = shared(0.5);
  gathers.travel = Travel::kWeights;
  const Played none = play(gathers, all);
  expect_same(base, none, "all passes gather");
  EXPECT_EQ(none.outcome.fetched.host_bytes, 0u);
  EXPECT_THAT(none.plan.notes, testing::Contains(HasSubstr("--cpu-share has no effect")));

  RunConfig either = shared(0.5);
  either.travel = Travel::kAuto;
  either.max_pass_tokens = 16;
  const Played mixed = play(either, all, {.stay_rows = 4});
  expect_same(base, mixed, "up to 4 rows stay");
  EXPECT_GT(mixed.outcome.fetched.host_bytes, 0u);
  EXPECT_GT(mixed.outcome.fetched.bytes[Link::kGather], 0u);
}

INSTANTIATE_TEST_SUITE_P(Some, CpuShareOfSomeModels,
                         testing::Values(kModelCases[0], kModelCases[3], kModelCases[4]),
                         [](const auto& info) { return info.param.name; });

/// The bundled model alone.
class CpuShareOfTheBundledModel : public CpuShareTest {};

TEST_P(CpuShareOfTheBundledModel, ScoresTheSame) {
  const auto all = prompts(9);
  const auto scores = [&](RunConfig score) {
    score.score = true;
    score.max_pass_tokens = 16;
    std::map<std::uint64_t, std::vector<float>> logprobs;
    for (const Result& r : play(score, all).results) logprobs[r.index] = r.token_logprobs.value();
    return logprobs;
  };
  const auto alone = scores(config(Travel::kWeights));
  const auto split = scores(shared(0.5));
  ASSERT_EQ(alone.size(), split.size());
  for (const auto& [prompt, logprobs] : alone) {
    ASSERT_EQ(logprobs.size(), split.at(prompt).size());
    for (std::size_t i = 0; i < logprobs.size(); ++i) {
      if (exact_bits()) {
        EXPECT_EQ(logprobs[i], split.at(prompt)[i]);
      } else {
        EXPECT_NEAR(logprobs[i], split.at(prompt)[i], 0.4);
      }
    }
  }
}

TEST_P(CpuShareOfTheBundledModel, TakesItsMemoryOnlyWhereTheHostCanHaveAShare) {
  const auto plan_of = [&](const RunConfig& run) {
    return Engine(world(), make_backend(world(), run), run).plan();
  };
  const MemoryPlan splits = plan_of(shared(0.5));
  EXPECT_TRUE(splits.splits());
  EXPECT_GT(splits.split_products, 0u);
  EXPECT_GT(splits.host_products, splits.split_products) << "inputs besides";
  EXPECT_FALSE(plan_of(shared(0)).splits());
  EXPECT_EQ(plan_of(shared(0)).host_products, 0u);
  RunConfig resident = config(Travel::kWeights);
  resident.cpu_share = 0.5;
  EXPECT_FALSE(plan_of(resident).splits());
  EXPECT_EQ(plan_of(resident).split_products, 0u);
  EXPECT_THAT(plan_of(resident).notes, testing::Contains(HasSubstr("--cpu-share has no effect")));
}

INSTANTIATE_TEST_SUITE_P(Bundled, CpuShareOfTheBundledModel,
                         testing::Values(kModelCases[0], kModelCases[1]),
                         [](const auto& info) { return info.param.name; });

/// Matrices of these rows and 416 columns, on the device, and the same in pinned memory.
struct SplitMatrices {
  static constexpr std::int64_t kCols = 416;

  SplitMatrices(Backend& backend, Stream& stream, const WeightFormat& format,
                const std::vector<std::int64_t>& rows) {
    UnitSpec unit{"unit", {}, {}};
    for (const std::int64_t r : rows) unit.matrices.push_back({"m", {r, kCols}});
    layout.emplace(unit, format, 1);
    device = backend.device->allocate(layout->shard_bytes());
    host = backend.device->allocate_pinned(layout->shard_bytes());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const UniformValues values{.key = 7 + i, .stored = DType::kBFloat16};
      backend.ops->fill_uniform_rows(values, 0, rows[i], kCols, format,
                                     device.data() + layout->matrices()[i].offset, stream);
    }
    backend.device->copy(host.data(), device.data(), device.bytes(), stream);
    stream.synchronize();
  }
  Matrices matrices(double share) const {
    std::vector<RowBlockMatrix> all;
    const UnitWeights weights{
        .layout = &*layout, .data = device.data(), .host_share = share, .host = host.data()};
    for (std::size_t i = 0; i < layout->matrices().size(); ++i) all.push_back(weights.matrix(i));
    return Matrices(all);
  }

  std::optional<PartitionLayout> layout;
  Buffer device;
  Buffer host;
};

class SplitOpsTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string model = data_path("bloom-kjv");
    if (const std::string why = missing_backend(model); !why.empty()) GTEST_SKIP() << why;
    backend = make_backend(world(), test_config(model));
    stream = backend.device->make_stream("compute");
  }
  std::shared_ptr<Ops> unowned() { return {std::shared_ptr<Ops>(), backend.ops.get()}; }
  std::vector<float> sums(Ops& ops, const Buffer& a, DType type, std::int64_t rows,
                          const Matrices& w) {
    std::vector<float> out(static_cast<std::size_t>(rows * w.padded_rows()));
    const Buffer y = backend.device->allocate(out.size() * sizeof(float));
    backend.device->zero(y.data(), y.bytes(), *stream);
    ops.matmul(a.data(), type, rows, w, y.as<float>(), *stream);
    backend.device->copy(out.data(), y.data(), y.bytes(), *stream);
    stream->synchronize();
    return out;
  }
  Backend backend;
  std::unique_ptr<Stream> stream;
};

TEST_F(SplitOpsTest, MultiplyInTwoPlacesWhatTheDeviceMultipliesAlone) {
  const auto host = make_host_products(2);
  // Of 300 rows two rounds; of 8192 more than the memory holds at once.
  SplitOps split(unowned(), *backend.device, *host,
                 {.device = std::size_t{1} << 20, .pinned = std::size_t{2} << 20});
  for (const DType type : {DType::kBFloat16, DType::kFloat32}) {
    for (const WeightFormat& format : {WeightFormat(type), kInt8Weights, kInt4Weights}) {
      for (const auto& shape :
           std::vector<std::vector<std::int64_t>>{{32}, {1000}, {320, 96, 96}, {8192}, {16, 500}}) {
        const SplitMatrices m(backend, *stream, format, shape);
        for (const std::int64_t rows : {1, 3, 17, 300}) {
          const auto elements = static_cast<std::size_t>(rows * SplitMatrices::kCols);
          const Buffer a = backend.device->allocate(elements * size_of(type));
          backend.ops->fill_uniform({.key = 3, .stored = DType::kBFloat16}, 0,
                                    rows * SplitMatrices::kCols, a.data(), type, *stream);
          const auto alone = sums(*backend.ops, a, type, rows, m.matrices(0));
          for (const double share : {0.1, 0.5, 1.0}) {
            const auto both = sums(split, a, type, rows, m.matrices(share));
            split.check();
            ASSERT_EQ(both.size(), alone.size());
            for (std::size_t i = 0; i < both.size(); ++i) {
              if (exact_bits()) {
                ASSERT_EQ(both[i], alone[i]) << i;
              } else {
                // Sums of 416 products of up to 1; packed values may be rounded to 8 bits.
                ASSERT_NEAR(both[i], alone[i], type == DType::kFloat32 ? 0.02 : 0.2) << i;
              }
            }
          }
        }
      }
    }
  }
}

TEST_F(SplitOpsTest, RefuseAProductWithoutMemoryAndTellWhatFailedOnTheHost) {
  struct Failing final : HostProducts {
    void run(const void*, DType, std::int64_t, const Matrices&, float*) override {
      throw IoError("the host failed");
    }
  };
  Failing failing;
  const SplitMatrices m(backend, *stream, DType::kBFloat16, {320});
  const Buffer a = backend.device->allocate(SplitMatrices::kCols * 2);
  const Buffer y = backend.device->allocate(320 * sizeof(float));
  SplitOps small(unowned(), *backend.device, failing, {.device = 4096, .pinned = 1024});
  EXPECT_THROW(small.matmul(a.data(), DType::kBFloat16, 1, m.matrices(0.5), y.as<float>(), *stream),
               Error);
  SplitOps split(unowned(), *backend.device, failing, {.device = 4096, .pinned = 4096});
  split.matmul(a.data(), DType::kBFloat16, 1, m.matrices(0.5), y.as<float>(), *stream);
  EXPECT_THROW(split.check(), IoError);
}

}  // namespace
}  // namespace zi::test
