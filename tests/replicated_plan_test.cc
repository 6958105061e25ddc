// Which blocks every rank holds whole, by --replicated-blocks and by the memory that there is.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gpu_plan_fixture.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::Not;

/// On two GPUs: 192 MiB of a block are a rank's.
class ReplicatedPlan : public GpuPlanTest {
 protected:
  ReplicatedPlan() : GpuPlanTest(2) { config_.replicated_blocks.reset(); }

  MemoryPlan plan() const { return make_plan(in_, config_); }
  MemoryPlan plan_of(std::int64_t blocks) const {
    RunConfig config = config_;
    config.replicated_blocks = blocks;
    return make_plan(in_, config);
  }
  std::string refusal() const {
    try {
      plan();
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
};

TEST_F(ReplicatedPlan, HasAllBlocksAndNoSlotsWhereMemoryHasRoom) {
  const MemoryPlan plan = this->plan(), none = plan_of(0);
  EXPECT_EQ(plan.replicated_count(), 30);
  EXPECT_EQ(plan.replicas, 30 * plan.blocks.front().shard_bytes());
  EXPECT_EQ(plan.slots, 0u);
  EXPECT_EQ(plan.device_bytes(), none.device_bytes() - none.slots + plan.replicas);
  EXPECT_EQ(plan.kv_pages, none.kv_pages);
  EXPECT_EQ(plan.travel, Travel::kAuto) << "few rows may still be faster with shards that stay";
  EXPECT_EQ(plan_of(30).device_bytes(), plan.device_bytes());
}

TEST_F(ReplicatedPlan, TakesNothingFromTheKvCacheAndFitsAsManyAsThereIsRoomFor) {
  for (const std::int64_t lanes : {8, 16, 32, 64}) {
    config_.batch_size = {lanes};
    for (std::size_t free = 10; free < 80; free += 7) {
      in_.device_free = free * kGibibyte;
      const MemoryPlan plan = this->plan(), none = plan_of(0);
      EXPECT_EQ(plan.kv_pages, none.kv_pages);
      EXPECT_EQ(plan.travel, none.travel);
      EXPECT_LE(plan.device_bytes(), plan.device_room);
      if (plan.replicated_count() == 30 || plan.all_stay()) continue;
      EXPECT_EQ(plan.slots, none.slots);
      const std::size_t left = plan.device_room - none.device_bytes();
      EXPECT_LT(left * 98 / 100, plan.replicas + plan.blocks.front().shard_bytes())
          << "another one would fit";
    }
  }
}

TEST_F(ReplicatedPlan, SpreadsThemAmongThoseThatAreGathered) {
  const MemoryPlan plan = plan_of(10);
  ASSERT_EQ(plan.replicated_count(), 10);
  for (std::size_t b = 0; b < 30; ++b) EXPECT_EQ(plan.replicated[b], b % 3 == 0) << b;
  EXPECT_GT(plan.slots, 0u);
}

TEST_F(ReplicatedPlan, StaysWithinTheBudgetOfWeights) {
  const std::size_t shard = plan().blocks.front().shard_bytes();
  config_.gpu_weight_budget = 37 * shard;
  EXPECT_EQ(plan().replicated_count(), 7);
  config_.gpu_weight_budget = 30 * shard;
  EXPECT_EQ(plan().replicated_count(), 0);
  for (const int more : {27, 28, 29, 30}) {  // with all of them, slots become free
    config_.gpu_weight_budget = static_cast<std::size_t>(30 + more) * shard;
    EXPECT_EQ(plan().replicated_count(), more);
    EXPECT_EQ(plan_of(more).replicated_count(), more) << "exactly enough";
    EXPECT_THROW(plan_of(more + 1), Error);
  }
  // Within a budget they take nothing from the KV cache.
  config_.gpu_weight_budget = 40 * shard;
  config_.batch_size = {64};
  in_.device_free = 24 * kGibibyte;
  EXPECT_LT(plan_of(0).kv_pages, plan_of(0).lanes * 2048 / kKvPageTokens) << "it is scarce";
  EXPECT_EQ(plan_of(10).kv_pages, plan_of(0).kv_pages);
  EXPECT_THAT(plan_of(10).notes, Not(Contains(HasSubstr("leave the KV cache"))));
}

TEST_F(ReplicatedPlan, PassesOfEitherKindAreRefusedOnlyWherePassesThatGatherAre) {
  config_.cpu_offload = true;
  config_.kv_budget = kGibibyte;
  config_.replicated_blocks = 6;
  int refused = 0, planned = 0;
  for (std::size_t free = 16; free < 60; ++free) {
    in_.device_free = free * kGibibyte / 4;
    config_.travel = Travel::kWeights;
    const std::string gathers = refusal();
    config_.travel = Travel::kAuto;
    EXPECT_EQ(refusal().empty(), gathers.empty()) << free << ": " << refusal();
    ++(gathers.empty() ? planned : refused);
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(planned, 0);
}

TEST_F(ReplicatedPlan, HasNoneByItselfOnTheCpuBesideAnOffloadOrWhereWeightsAlwaysStay) {
  const auto count = [&] { return plan().replicated_count(); };
  config_.travel = Travel::kActivations;
  EXPECT_EQ(count(), 0);
  config_.travel = Travel::kAuto;
  config_.cpu_offload = true;
  config_.gpu_weight_budget = kGibibyte;
  EXPECT_EQ(count(), 0);
  config_.cpu_offload = false;
  config_.gpu_weight_budget.reset();
  in_.device_is_host = true;
  EXPECT_EQ(count(), 0);
  in_.world = in_.local_size = 1;
  in_.device_is_host = false;
  EXPECT_EQ(count(), 0) << "one rank gathers nothing";
  config_.replicated_blocks = 3;
  EXPECT_EQ(count(), 0);
  config_.travel = Travel::kActivations;
  EXPECT_EQ(count(), 0) << "nor does anything travel";
}

TEST_F(ReplicatedPlan, TakesMemoryFromTheKvCacheWhereTheyAreAskedFor) {
  config_.batch_size = {64};
  in_.device_free = 24 * kGibibyte;
  const MemoryPlan some = plan_of(20), none = plan_of(0);
  EXPECT_EQ(some.replicated_count(), 20);
  EXPECT_LT(some.kv_pages, none.kv_pages);
  const auto note = Contains(AllOf(HasSubstr("--replicated-blocks 20 leave the KV cache of a rank"),
                                   HasSubstr("tokens instead of")));
  EXPECT_THAT(some.notes, note);
  EXPECT_THAT(none.notes, Not(note));
  in_.device_is_host = true;
  EXPECT_EQ(plan_of(20).replicated_count(), 20) << "on the CPU backend, too";
  in_.device_is_host = false;
  config_.cpu_offload = true;
  config_.gpu_weight_budget = 24 * some.blocks.front().shard_bytes();
  EXPECT_EQ(plan_of(12).replicated_count(), 12) << "those of the device tier beside offloaded ones";
}

TEST_F(ReplicatedPlan, RefusesWhatCannotBe) {
  config_.replicated_blocks = 31;
  EXPECT_THAT(refusal(), HasSubstr("--replicated-blocks 31 are more than the 30 of the model"));
  config_.replicated_blocks = 5;
  config_.travel = Travel::kActivations;
  EXPECT_THAT(refusal(), HasSubstr("--travel activations contradict"));
  config_.travel = Travel::kAuto;
  config_.cpu_offload = true;
  config_.gpu_weight_budget = 9 * plan_of(0).blocks.front().shard_bytes();
  EXPECT_THAT(refusal(), AllOf(HasSubstr("the shards of 4 blocks"),
                               HasSubstr("or raise --gpu-weight-budget")));
  config_.gpu_weight_budget.reset();
  in_.device_free = 6 * kGibibyte;
  config_.replicated_blocks = 15;
  EXPECT_THAT(refusal(),
              AllOf(HasSubstr("--replicated-blocks 15"), Not(HasSubstr("--gpu-weight-budget"))));
  config_.cpu_offload = false;
  config_.replicated_blocks = 30;
  in_.device_free = 12 * kGibibyte;
  EXPECT_THAT(refusal(), AllOf(HasSubstr("the plan does not fit"),
                               HasSubstr("lower --replicated-blocks, --batch-size")));
  config_.replicated_blocks = 0;
  in_.device_free = 4 * kGibibyte;
  EXPECT_THAT(refusal(), HasSubstr("lower --batch-size"));
}

}  // namespace
}  // namespace zi
