// What --travel auto comes to, by the memory that there is.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/staying_products.h"
#include "gpu_plan_fixture.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::size_t kOneMiB = std::size_t{1} << 20;

class TravelPlan : public GpuPlanTest {
 protected:
  TravelPlan() : GpuPlanTest(4) {}

  MemoryPlan plan(Travel travel) const {
    RunConfig config = config_;
    config.travel = travel;
    return make_plan(in_, config);
  }
  bool fits(Travel travel) const {
    try {
      plan(travel);
      return true;
    } catch (const MemoryError&) {
      return false;
    }
  }
  /// So much device memory that the plan fits with `spare` bytes left.
  void leave(Travel travel, std::size_t spare) {
    const std::size_t bytes = plan(travel).device_bytes() + spare;
    in_.device_free = bytes / 95 * 100 + 100;
  }
};

TEST_F(TravelPlan, AutoIsTheDefaultAndHasSlotsAndExchangesForRoundsOfAThousandRows) {
  const MemoryPlan plan = make_plan(in_, config_);
  const MemoryPlan gathers = this->plan(Travel::kWeights), stays = this->plan(Travel::kActivations);
  EXPECT_EQ(plan.travel, Travel::kAuto);
  EXPECT_TRUE(plan.may_stay());
  EXPECT_FALSE(plan.all_stay());
  EXPECT_EQ(plan.slots, gathers.slots);
  EXPECT_EQ(plan.product_exchange.bytes(), staying_room(plan, *model_, 1024).bytes());
  EXPECT_LT(plan.product_exchange.bytes(), stays.product_exchange.bytes());
  EXPECT_EQ(plan.kv_pages, gathers.kv_pages);
  EXPECT_THAT(plan.notes, IsEmpty());
}

TEST_F(TravelPlan, HasASlotForTheTrialWhereverNoBlockNeedRestOnTheDevice) {
  config_.gpu_weight_budget = 0;
  for (const bool offload : {false, true}) {
    config_.cpu_offload = offload;
    config_.cpu_weight_budget = 100 * kGibibyte;
    const MemoryPlan plan = make_plan(in_, config_);
    ASSERT_EQ(plan.device_shards, 0u);
    EXPECT_EQ(plan.travel, Travel::kAuto);
    EXPECT_EQ(plan.slot_count, 3);
  }
}

TEST_F(TravelPlan, TakesNoSlotForATrialThatHasBlocksOnTheDevice) {
  config_.gpu_weight_budget = kGibibyte;
  config_.cpu_weight_budget = 100 * kGibibyte;
  const MemoryPlan plan = make_plan(in_, config_);
  ASSERT_GT(plan.device_shards, 0u);
  ASSERT_GT(plan.host_shards, 0u);
  EXPECT_EQ(plan.travel, Travel::kAuto);
  EXPECT_EQ(plan.slot_count, 2);
}

TEST_F(TravelPlan, SaysOfTheHostsShareWhatWouldHelpWhereAutoCannotStay) {
  config_.cpu_offload = true;
  config_.gpu_weight_budget = 0;
  config_.cpu_share.reset();
  config_.kv_budget = kGibibyte;
  leave(Travel::kWeights, 0);
  const MemoryPlan plan = make_plan(in_, config_);
  ASSERT_EQ(plan.travel, Travel::kWeights);
  EXPECT_THAT(plan.notes, testing::Contains(HasSubstr("--cpu-share has no effect")));
  EXPECT_THAT(plan.notes, testing::Not(testing::Contains(HasSubstr("give --travel"))));
}

TEST_F(TravelPlan, NoPassHasRoundsOfMoreRowsThanItself) {
  config_.max_pass_tokens = 100;
  const MemoryPlan plan = make_plan(in_, config_);
  EXPECT_EQ(plan.product_exchange.bytes(), staying_room(plan, *model_, 100).bytes());
}

TEST_F(TravelPlan, OneRankExchangesNothingWhateverIsGiven) {
  in_.world = in_.local_size = 1;
  for (const Travel travel : {Travel::kWeights, Travel::kActivations, Travel::kAuto}) {
    const MemoryPlan plan = this->plan(travel);
    EXPECT_EQ(plan.travel, Travel::kWeights);
    EXPECT_EQ(plan.slots + plan.product_exchange.bytes(), 0u);
    EXPECT_THAT(plan.notes, IsEmpty());
  }
}

TEST_F(TravelPlan, ExchangesTakeNoMoreThanA64thOfAScarceKvCache) {
  config_.batch_size = {64};
  for (const std::size_t free : {20u, 16u, 14u}) {
    in_.device_free = free * kGibibyte;
    const MemoryPlan gathers = plan(Travel::kWeights), either = plan(Travel::kAuto);
    ASSERT_LT(gathers.max_sequence_tokens, 64 * 2048) << "the cache is scarce";
    EXPECT_EQ(either.travel, Travel::kAuto);
    EXPECT_LE(gathers.kv_pages - either.kv_pages, gathers.kv_pages / 64);
    EXPECT_GE(either.product_exchange.bytes(), staying_room(either, *model_, 64).bytes())
        << "decoding goes in one round";
    EXPECT_LT(either.product_exchange.bytes(), staying_room(either, *model_, 1024).bytes());
  }
}

TEST_F(TravelPlan, WeightsAloneTravelWhereTheCacheIsTooSmallToGiveAPage) {
  config_.kv_budget = 10 * std::size_t{491'520} * kKvPageTokens;
  leave(Travel::kWeights, 0);
  config_.kv_budget.reset();
  in_.device_free += 4 * kOneMiB;  // less than a page
  const MemoryPlan plan = make_plan(in_, config_);
  EXPECT_EQ(plan.travel, Travel::kWeights);
  EXPECT_EQ(plan.kv_pages, this->plan(Travel::kWeights).kv_pages);
  EXPECT_THAT(plan.notes, ElementsAre(HasSubstr("weights travel in every pass")));
}

TEST_F(TravelPlan, WhatFitsWithWeightsFitsAlwaysAndHasItsSlotsAndTiers) {
  config_.kv_budget = kGibibyte;
  const std::size_t exchange = plan(Travel::kAuto).product_exchange.bytes() -
                               plan(Travel::kWeights).product_exchange.bytes();
  ASSERT_GT(exchange, 0u);
  leave(Travel::kWeights, 0);
  for (const bool offload : {false, true}) {
    config_.cpu_offload = offload;
    const MemoryPlan plan = make_plan(in_, config_);
    EXPECT_EQ(plan.kv, this->plan(Travel::kWeights).kv);
    EXPECT_EQ(plan.travel, offload ? Travel::kAuto : Travel::kWeights);
    if (!offload) {
      EXPECT_THAT(plan.notes, ElementsAre(HasSubstr("(--travel auto)")));
    }
  }
}

TEST_F(TravelPlan, WeightsStayInEveryPassWhereThereIsNoRoomForSlots) {
  config_.kv_budget = kGibibyte;
  leave(Travel::kActivations, 0);
  ASSERT_FALSE(fits(Travel::kWeights));
  const MemoryPlan plan = make_plan(in_, config_);
  EXPECT_TRUE(plan.all_stay());
  EXPECT_EQ(plan.slots, 0u);
  EXPECT_THAT(plan.notes, ElementsAre(HasSubstr("weights stay in every pass")));
  EXPECT_THAT(this->plan(Travel::kActivations).notes, IsEmpty()) << "this is what was asked for";
}

TEST_F(TravelPlan, IsRefusedAsWithWeightsWhereNothingFits) {
  in_.device_free = kGibibyte;
  std::string messages[2];
  for (const Travel travel : {Travel::kWeights, Travel::kAuto}) {
    try {
      plan(travel);
      FAIL() << "nothing was refused";
    } catch (const MemoryError& error) {
      messages[travel == Travel::kAuto ? 1 : 0] = error.what();
    }
  }
  EXPECT_EQ(messages[0], messages[1]);
}

TEST_F(TravelPlan, OnTheCpuBackendTheExchangesOfAScarceHostAreTheFirstToGo) {
  in_.device_is_host = true;
  in_.block_format = {kInt8Weights, {}};
  config_.kv_budget = kGibibyte;
  const std::size_t needed = plan(Travel::kWeights).process_bytes();
  in_.host_free = (needed + 64 * 1024) * 4 / 9 * 10 + 100;
  EXPECT_EQ(make_plan(in_, config_).travel, Travel::kWeights);
  in_.host_free += 4 * 64 * kOneMiB;
  EXPECT_EQ(make_plan(in_, config_).travel, Travel::kAuto);
}

}  // namespace
}  // namespace zi
