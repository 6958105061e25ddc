// Plans for several hosts: what is on the network, and when it is what bounds a pass.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config_refusal.h"
#include "plan/gpu_list.h"
#include "plan_fixture.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

/// GPUs of several hosts.
PlanOptions hosts_of(const std::string& gpu, std::int64_t ranks, std::int64_t ranks_per_host) {
  PlanOptions options = like(gpu, ranks);
  options.ranks_per_host = ranks_per_host;
  return options;
}

RunConfig with_network(const std::string& model, double rate) {
  RunConfig config = run_of(model);
  config.network = rate;
  return config;
}

double seconds_of(const nlohmann::json& plan) { return plan.at("pass").at("pass_s"); }

bool has_network(const nlohmann::json& plan) {
  for (const auto& link : plan.at("pass").at("links")) {
    if (link.at("link") == "network") return true;
  }
  return false;
}

/// Limits of CPUs, as measured over several hosts.
MachineLimits cpus(int world, int ranks_per_host) {
  MachineLimits limits = limits_of_listed_gpu("l4", world, ranks_per_host);
  limits.backend = "cpu";
  limits.device_bytes = 0;
  limits.host_bytes = 2048 * kGiB;
  limits.host_memory = 100e9;
  limits.network = {{16 << 20, 1e9}, {1 << 30, 10e9}};
  if (ranks_per_host == 1) limits.gather.clear();
  return limits;
}

TEST_F(Plan, AShardCrossesTheNetworkOnceForAHost) {
  // MPI: into a host of 2 come the shards of the other 6, whatever the other links do.
  PlanOptions options;
  options.limits = write("limits.json", cpus(8, 2).to_json());
  const auto cpu = planned(run_of("7b1"), options).at("pass");
  const double gathered = link_of(cpu, "gather").at("bytes");
  const double exchanged = gathered * 0.02;  // hidden states, logits and embedding rows
  EXPECT_NEAR(link_of(cpu, "network").at("bytes"), gathered / 7 * 6, exchanged);
  EXPECT_GT(link_of(cpu, "network").at("bytes"), gathered / 7 * 6);
  // NCCL: its rings bring all shards but one.
  const auto gpu = planned(with_network("7b1", 10e9), hosts_of("h100", 8, 2)).at("pass");
  EXPECT_NEAR(link_of(gpu, "network").at("bytes"), link_of(gpu, "gather").at("bytes"), exchanged);
}

TEST_F(Plan, ASlowNetworkBoundsAPassAndAFastOneDoesNot) {
  const auto slow = planned(with_network("7b1", 1e9), hosts_of("h100", 16, 8));
  const auto network = link_of(slow.at("pass"), "network");
  EXPECT_EQ(network.at("gb_s"), 1);
  EXPECT_EQ(slow.at("pass").at("bottleneck"), "network");
  EXPECT_EQ(seconds_of(slow), network.at("seconds"));
  EXPECT_DOUBLE_EQ(network.at("seconds").get<double>(), network.at("bytes").get<double>() / 1e9);
  const auto fast = planned(with_network("7b1", 1e12), hosts_of("h100", 16, 8));
  EXPECT_EQ(fast.at("pass").at("bottleneck"), "gather");
  EXPECT_LT(seconds_of(fast), seconds_of(slow));
}

TEST_F(Plan, OfAnUnknownNetworkNothingIsSaidButThatItIsUnknown) {
  const auto plan = planned(run_of("7b1"), hosts_of("h100", 16, 8));
  EXPECT_EQ(link_of(plan.at("pass"), "network").at("gb_s"), 0);
  EXPECT_THAT(plan.at("notes").dump(), HasSubstr("give --network 25GB/s"));
  EXPECT_THAT(plan_text(run_of("7b1"), hosts_of("h100", 16, 8)),
              AllOf(HasSubstr("16 ranks on 2 hosts,"), HasSubstr("not known")));
  const auto one_host = planned(with_network("7b1", 1e9), like("h100", 8));
  EXPECT_FALSE(has_network(one_host));
  EXPECT_THAT(one_host.at("notes").dump(), HasSubstr("--network has no effect"));
  EXPECT_EQ(seconds_of(one_host), seconds_of(planned(run_of("7b1"), like("h100", 8))));
}

TEST_F(Plan, WithOneRankAHostTheNetworkIsTheGather) {
  PlanOptions options;
  options.limits = write("limits.json", cpus(4, 1).to_json());
  const auto plan = planned(run_of("560m"), options);
  EXPECT_THAT(plan.at("pass").at("links").dump(), Not(HasSubstr("\"gather\"")));
  EXPECT_TRUE(has_network(plan));
  // By the size of a gathered block, 25 MB, between what was measured of 16 MiB and 1 GiB.
  const double rate = link_of(plan.at("pass"), "network").at("gb_s");
  EXPECT_GT(rate, 1.5);
  EXPECT_LT(rate, 2.5);
}

TEST_F(Plan, WeightsThatStayPayForEachCallOverTheNetwork) {
  RunConfig stays = with_network("176b", 400e9);
  stays.travel = Travel::kActivations;
  const auto plan = planned(stays, hosts_of("h100", 64, 8)).at("pass");
  const double network = link_of(plan, "network").at("seconds");
  const double calls = plan.at("exchanges").get<double>() * 30e-6;
  EXPECT_GT(network, calls);
  EXPECT_NEAR(network, calls + link_of(plan, "network").at("bytes").get<double>() / 400e9, 1e-9);
  // Gathers in a host and over hosts go on at once; products wait for both.
  double others = 0;
  for (const auto& link : plan.at("links")) {
    if (link.at("link") != "network" && link.at("link") != "gather") {
      others = std::max(others, link.at("seconds").get<double>());
    }
  }
  EXPECT_NEAR(plan.at("pass_s"),
              others + std::max(network, link_of(plan, "gather").at("seconds").get<double>()),
              1e-9);
}

TEST_F(Plan, APartitionWithinAHostPutsNothingOnTheNetwork) {
  RunConfig within = with_network("7b1", 1e9);
  within.partition_within = PartitionWithin::kHost;
  const auto host = planned(within, hosts_of("h100", 16, 8));
  const auto job = planned(with_network("7b1", 1e9), hosts_of("h100", 16, 8));
  EXPECT_FALSE(has_network(host));
  EXPECT_EQ(host.at("partition"), 8);
  EXPECT_EQ(job.at("partition"), 16);
  EXPECT_NEAR(host.at("memory").at("block_shards_device").get<double>() /
                  job.at("memory").at("block_shards_device").get<double>(),
              2, 0.05);
  // As one host alone plans, with twice the prompts.
  const auto one = planned(run_of("7b1"), like("h100", 8));
  EXPECT_EQ(seconds_of(host), seconds_of(one));
  EXPECT_DOUBLE_EQ(host.at("pass").at("tokens_per_s").get<double>(),
                   2 * one.at("pass").at("tokens_per_s").get<double>());
  EXPECT_THAT(plan_text(within, hosts_of("h100", 16, 8)),
              HasSubstr("16 ranks on 2 hosts, each with all weights"));
}

TEST_F(Plan, AdvisesThePartitionThatIsFaster) {
  EXPECT_THAT(advice_of(planned(with_network("7b1", 1e9), hosts_of("h100", 16, 8))),
              HasSubstr("--partition-within host, a pass takes"));
  EXPECT_THAT(advice_of(planned(with_network("7b1", 4e12), hosts_of("h100", 16, 8))),
              Not(HasSubstr("--partition-within")));
  // On one host 405b has to be offloaded.
  RunConfig offloads = with_network("7b1", 400e9);
  offloads.model = std::string(ZI_SOURCE_DIR) + "/config/models/llama-3.1-405b";
  offloads.partition_within = PartitionWithin::kHost;
  try {
    plan_text(offloads, hosts_of("h100", 64, 8));
    FAIL() << "nothing was refused";
  } catch (const MemoryError& error) {
    EXPECT_THAT(error.what(), HasSubstr("or --partition-within job"));
  }
  offloads.cpu_offload = true;
  offloads.travel = Travel::kActivations;
  EXPECT_THAT(advice_of(planned(offloads, hosts_of("h100", 64, 8))),
              HasSubstr("the memory of all hosts together: --partition-within job"));
}

TEST_F(Plan, ReadsRatesOfNetworksAndFilesThatHaveNone) {
  const MachineLimits limits = cpus(8, 2);
  const MachineLimits read = MachineLimits::from_json(limits.to_json(), "here");
  ASSERT_EQ(read.network.size(), 2u);
  EXPECT_EQ(read.network[1].bytes, std::size_t{1} << 30);
  EXPECT_EQ(read.network_rate(std::size_t{1} << 34), 10e9);
  EXPECT_EQ(read.network_rate(1), 1e9);
  auto object = nlohmann::json::parse(limits.to_json());
  object.erase("network");  // as files before had it
  EXPECT_EQ(MachineLimits::from_json(object.dump(), "here").network_rate(1), 0);
  object["network"] = {{{"bytes", 1}, {"gb_s", -1}}};
  EXPECT_THAT(refusal([&] { MachineLimits::from_json(object.dump(), "here"); }),
              HasSubstr("`gb_s` is not a rate"));
  object["network"] = {{{"bytes", 2}, {"gb_s", 1}}, {{"bytes", 1}, {"gb_s", 1}}};
  EXPECT_THAT(refusal([&] { MachineLimits::from_json(object.dump(), "here"); }),
              HasSubstr("`network` must be in order of bytes"));
}

TEST_F(Plan, ANetworkThatIsGivenWinsOverOneThatWasMeasured) {
  PlanOptions options;
  options.limits = write("limits.json", cpus(8, 2).to_json());
  const auto measured = planned(run_of("7b1"), options);
  const auto given = planned(with_network("7b1", 3e9), options);
  EXPECT_NE(link_of(measured.at("pass"), "network").at("gb_s"), 3);
  EXPECT_EQ(link_of(given.at("pass"), "network").at("gb_s"), 3);
}

}  // namespace
}  // namespace zi
