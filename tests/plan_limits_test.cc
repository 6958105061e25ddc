// Which limits `zero-infer plan` takes: a file's, those kept for the machine, or typical ones.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "config_refusal.h"
#include "plan/gpu_list.h"
#include "plan/kept_limits.h"
#include "plan_fixture.h"

namespace zi {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

MachineLimits some_limits() {
  MachineLimits limits = limits_of_listed_gpu("l4", 2, 2);
  limits.source = "measured on somewhere";
  limits.host_bytes = 50 * kGiB;
  return limits;
}

TEST_F(Plan, PlansForTheMachineThatAFileOfLimitsWasMeasuredOn) {
  PlanOptions options;
  options.limits = write("limits.json", some_limits().to_json());
  const auto plan = planned(run_of("560m"), options);
  EXPECT_EQ(plan.at("ranks"), 2);
  EXPECT_EQ(plan.at("limits").at("source"), "measured on somewhere");
  EXPECT_EQ(plan.at("limits"), nlohmann::json::parse(some_limits().to_json()));
  options.ranks = 4;
  EXPECT_THAT(planned(run_of("560m"), options).at("notes").dump(),
              HasSubstr("the limits were measured with 2 ranks, not 4"));
  RunConfig cpu = run_of("560m");
  cpu.backend = BackendChoice::kCpu;
  EXPECT_THAT(refusal([&] { plan_text(cpu, options); }), HasSubstr("measured with the cuda"));
  options.gpus_like = "h100";
  EXPECT_THAT(refusal([&] { plan_text(run_of("560m"), options); }),
              HasSubstr("--gpus-like and --limits"));
}

TEST_F(Plan, AFileThatHoldsNoLimitsIsRefusedOnOneLine) {
  PlanOptions options;
  options.limits = folder_ + "/missing.json";
  EXPECT_THAT(refusal([&] { plan_text(run_of("560m"), options); }),
              AllOf(HasSubstr("missing.json"), HasSubstr("No such file")));
  std::string negative = some_limits().to_json();
  negative.replace(negative.find("\"copy_alone_gb_s\":") + 18, 0, "-");
  for (const std::string& junk : {std::string(""), std::string("{"), std::string("[1,2]\n{"),
                                  std::string("{\"name\":\"pass\"}"), negative}) {
    options.limits = write("junk.json", junk);
    EXPECT_THAT(
        refusal([&] { plan_text(run_of("560m"), options); }),
        AllOf(HasSubstr("--limits"), HasSubstr("junk.json"), HasSubstr("zero-infer limits")))
        << junk;
  }
}

TEST_F(Plan, TakesTheLimitsThatWereKeptForThisMachineAndElseTypicalOnes) {
  RunConfig config = run_of("560m");
  config.backend = BackendChoice::kCpu;
  PlanOptions options;
  EXPECT_THAT(planned(config, options).at("limits").at("source"),
              HasSubstr("zero-infer limits measures"));
  MachineLimits limits = some_limits();
  limits.backend = "cpu";
  limits.device = planned(config, options).at("limits").at("device");
  limits.world = 1;
  limits.ranks_per_host = 1;
  limits.host_memory = 1e9;
  keep_limits(limits);
  const auto plan = planned(config, options);
  EXPECT_EQ(plan.at("limits").at("source"), "measured on somewhere");
  EXPECT_EQ(plan.at("pass").at("bottleneck"), "host memory");
  options.ranks = 2;  // of two ranks nothing was kept
  EXPECT_THAT(planned(config, options).at("limits").at("source"), HasSubstr("typical"));
  options.ranks = 1;
  limits.device = "another processor";
  keep_limits(limits);
  EXPECT_THAT(plan_text(config, options), HasSubstr("the kept limits are of another machine"));
}

TEST_F(Plan, RefusesLimitsThatLackWhatItDividesBy) {
  MachineLimits limits = some_limits();
  limits.gather.clear();
  PlanOptions options;
  options.limits = write("limits.json", limits.to_json());
  EXPECT_THAT(refusal([&] { plan_text(run_of("560m"), options); }),
              HasSubstr("holds no gathers, which 2 ranks a host need"));
  PlanOptions hosts = options;
  hosts.ranks_per_host = 1;
  RunConfig config = run_of("560m");
  EXPECT_THAT(refusal([&] { plan_text(config, hosts); }),
              HasSubstr("holds neither gathers nor a network, which 2 hosts need"));
  config.network = 25e9;
  EXPECT_NO_THROW(plan_text(config, hosts));
  config.network.reset();
  config.partition_within = PartitionWithin::kHost;
  EXPECT_NO_THROW(plan_text(config, hosts)) << "no weights cross the network";
  const auto refused = [&](const std::function<void(nlohmann::json&)>& change) {
    auto object = nlohmann::json::parse(some_limits().to_json());
    change(object);
    options.limits = write("limits.json", object.dump());
    return refusal([&] { plan_text(run_of("560m"), options); });
  };
  for (const char* count : {"world", "ranks_per_host"}) {
    for (const double value : {0.0, -1.0, 1.5}) {
      EXPECT_THAT(refused([&](auto& o) { o[count] = value; }), HasSubstr("not a number of ranks"));
    }
  }
  EXPECT_THAT(refused([](auto& o) { o["host_bytes"] = -5; }), HasSubstr("not a number of bytes"));
  EXPECT_THAT(refused([](auto& o) { o["backend"] = "rocm"; }), HasSubstr("neither cpu nor cuda"));
  EXPECT_THAT(refused([](auto& o) { o["device_memory_gb_s"] = 0; }), HasSubstr("is 0"));
  EXPECT_THAT(refused([](auto& o) { o["products"][0]["weights_gb_s"] = 0; }),
              HasSubstr("rates above 0"));
  EXPECT_THAT(refused([](auto& o) { o["gather"][0]["bytes"] = 0; }),
              HasSubstr("in order of bytes"));
  options.limits = folder_;
  EXPECT_THAT(refusal([&] { plan_text(run_of("560m"), options); }), HasSubstr("it is a directory"));
}

}  // namespace
}  // namespace zi
