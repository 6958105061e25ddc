// `zero-infer limits` on the CPU backend, with little effort.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "forwarding_device.h"
#include "measure/limits_command.h"
#include "mpi_world.h"
#include "plan/kept_limits.h"
#include "zero_infer/error.h"

namespace zi::test {
namespace {

using testing::AllOf;
using testing::Each;
using testing::Field;
using testing::Ge;
using testing::Gt;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Le;
using testing::Lt;
using testing::SizeIs;

constexpr std::size_t kKiB = std::size_t{1} << 10;

ProbeEffort small() {
  ProbeEffort effort;
  effort.seconds = 0.3;  // the slowest machine finds time for everything, no repeats take so long
  effort.most_bytes = 4096 * kKiB;
  effort.gathers = {120 * kKiB, 1024 * kKiB};
  effort.rows = {1, 4, 32};
  effort.storage = {.fill_seconds = 1,
                    .seconds = 0.005,
                    .most_bytes = 2048 * kKiB,
                    .least_bytes = 1024 * kKiB,
                    .depths = {1, 2},
                    .sizes = {64 * kKiB, 128 * kKiB}};
  return effort;
}

/// Far from what units mixed up would give: 10 kB/s to 10 TB/s.
const auto kPlausible = AllOf(Gt(1e4), Lt(1e13));

/// A folder that all ranks of the host see, made and removed by rank 0; $XDG_CACHE_HOME lies in it.
class SharedFolder {
 public:
  SharedFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "zi-limits-XXXXXX").string();
    if (world().rank() == 0 && ::mkdtemp(name.data()) == nullptr) ADD_FAILURE() << "no folder";
    path_ = world().broadcast(name, 0);
    ::setenv("XDG_CACHE_HOME", (path_ / "cache").c_str(), 1);
    if (world().rank() == 0) std::filesystem::create_directory(path_ / "disk");
    world().barrier();
  }
  ~SharedFolder() {
    world().barrier();
    std::error_code ignored;
    if (world().rank() == 0) std::filesystem::remove_all(path_, ignored);
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;
  std::filesystem::path disk() const { return path_ / "disk"; }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

std::string read_text(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

void expect_complete(const MachineLimits& limits) {
  EXPECT_EQ(limits.backend, "cpu");
  EXPECT_EQ(limits.world, world().size());
  const RankHosts& hosts = world().hosts();
  EXPECT_EQ(limits.ranks_per_host, hosts.most_on_a_host());
  EXPECT_THAT(limits.source, HasSubstr("measured on " + world().host() + ", 20"));
  EXPECT_FALSE(limits.device.empty());
  EXPECT_EQ(limits.device_bytes, 0u);
  EXPECT_GT(limits.host_bytes, 1024 * kKiB);
  EXPECT_THAT((std::vector{limits.copy_alone, limits.copy_together, limits.device_memory,
                           limits.host_memory}),
              Each(kPlausible));
  EXPECT_THAT(limits.gather, Each(Field(&SizedRate::rate, kPlausible)));
  EXPECT_THAT(limits.network, Each(Field(&SizedRate::rate, kPlausible)));
  const auto expect_sizes = [](const std::vector<SizedRate>& rates, int count) {
    // What was really gathered: whole pages of each rank.
    const auto ranks = static_cast<std::size_t>(count);
    // Ranks of pretended hosts wait for cores: there may be no time for the second size.
    const std::size_t least = world().hosts().count() > 1 ? 1 : 2;
    ASSERT_THAT(rates, SizeIs(AllOf(Ge(least), Le(2u))));
    EXPECT_EQ(rates.front().bytes, 120 * kKiB / ranks / 4096 * 4096 * ranks);
    if (rates.size() == 1) return;
    EXPECT_EQ(rates.back().bytes, 1024 * kKiB / ranks / 4096 * 4096 * ranks);
  };
  if (hosts.most_on_a_host() == 1) {
    EXPECT_THAT(limits.gather, IsEmpty());
  } else {
    expect_sizes(limits.gather, hosts.most_on_a_host());
  }
  if (hosts.count() == 1) {
    EXPECT_THAT(limits.network, IsEmpty());
  } else {
    expect_sizes(limits.network, world().size());
  }
  ASSERT_THAT(limits.products, SizeIs(3));
  for (std::size_t i = 0; i < 3; ++i) {
    const ProductRate& p = limits.products[i];
    EXPECT_EQ(p.rows, small().rows[i]);
    EXPECT_THAT(p.weights_rate, kPlausible);
    EXPECT_DOUBLE_EQ(p.operations_rate, p.weights_rate * static_cast<double>(p.rows));
  }
}

TEST(ProbeMachine, MeasuresEverythingAndTellsAllRanksTheSame) {
  RunConfig config;
  config.backend = BackendChoice::kCpu;
  const Backend backend = make_backend(world(), config);
  const MachineLimits limits = probe_machine(world(), backend, small());
  expect_complete(limits);
  const std::string mine = limits.to_json();
  EXPECT_EQ(world().broadcast(mine, 0), mine);
}

TEST(ProbeMachine, LeavesOutGathersThatDoNotFit) {
  if (world().size() == 1) GTEST_SKIP() << "there are no gathers";
  RunConfig config;
  config.backend = BackendChoice::kCpu;
  const Backend backend = make_backend(world(), config);
  ProbeEffort effort = small();
  effort.gathers.push_back(std::size_t{1} << 50);
  EXPECT_THAT(probe_machine(world(), backend, effort).gather, SizeIs(2));
}

TEST(ProbeMachine, LeavesOutGathersThatThereIsNoTimeFor) {
  if (world().size() == 1) GTEST_SKIP() << "there are no gathers";
  RunConfig config;
  config.backend = BackendChoice::kCpu;
  const Backend backend = make_backend(world(), config);
  ProbeEffort effort = small();
  effort.seconds = 0;
  const MachineLimits limits = probe_machine(world(), backend, effort);
  EXPECT_THAT(limits.gather, SizeIs(1));
  EXPECT_THAT(limits.products, SizeIs(3));
}

TEST(ProbeMachine, RefusesAMachineWithoutFreeMemory) {
  RunConfig config;
  config.backend = BackendChoice::kCpu;
  Backend backend = make_backend(world(), config);
  class FullDevice final : public ForwardingDevice {
   public:
    using ForwardingDevice::ForwardingDevice;
    MemoryInfo memory() const override { return {kKiB, std::size_t{1} << 40}; }
  };
  const bool full = world().rank() == world().size() - 1;
  if (full) backend.device = std::make_unique<FullDevice>(std::move(backend.device));
  try {
    probe_machine(world(), backend, small());
    FAIL() << "it was measured";
  } catch (const PeerError&) {
    EXPECT_FALSE(full);
  } catch (const ConfigError& error) {
    EXPECT_TRUE(full);
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("needs 16.0 MiB of free memory"), HasSubstr("are free")));
  }
}

TEST(LimitsCommand, WritesWhatItMeasuredAndKeepsItForPlan) {
  const SharedFolder folder;
  LimitsOptions options;
  options.backend = BackendChoice::kCpu;
  options.path = folder.disk();
  options.output = folder / "limits.json";
  EXPECT_EQ(run_limits_command(world(), options, small()), 0);
  world().barrier();
  EXPECT_TRUE(std::filesystem::is_empty(folder.disk()));
  const std::string text = read_text(*options.output);
  const MachineLimits limits = MachineLimits::from_json(text, "the output");
  expect_complete(limits);
  EXPECT_THAT(limits.seconds, AllOf(Gt(0), Lt(60)));
  EXPECT_EQ(limits.storage_path, folder.disk().string());
  EXPECT_THAT(limits.storage_method, testing::AnyOf(HasSubstr("io_uring"), HasSubstr("pread")));
  for (const std::vector<StorageRate>& rates : {limits.reads, limits.writes}) {
    ASSERT_FALSE(rates.empty());
    EXPECT_EQ(rates[0].depth, 1);
    EXPECT_EQ(rates[0].bytes, 64 * kKiB);
    for (std::size_t i = 0; i < rates.size(); ++i) {
      EXPECT_THAT(rates[i].rate, kPlausible);
      if (i > 0) {  // by sizes, then by depths
        EXPECT_LT(std::pair(rates[i - 1].bytes, rates[i - 1].depth),
                  std::pair(rates[i].bytes, rates[i].depth));
      }
    }
  }
  const std::optional<MachineLimits> kept = find_kept_limits("cpu", world().size(), world().size());
  ASSERT_TRUE(kept.has_value());
  EXPECT_EQ(kept->to_json() + "\n", text);
}

TEST(LimitsCommand, MeasuresNoStorageUnlessItIsGivenAPath) {
  const SharedFolder folder;
  LimitsOptions options;
  options.backend = BackendChoice::kCpu;
  options.output = folder / "limits.json";
  EXPECT_EQ(run_limits_command(world(), options, small()), 0);
  world().barrier();
  const MachineLimits limits = MachineLimits::from_json(read_text(*options.output), "the output");
  expect_complete(limits);
  EXPECT_THAT(limits.reads, IsEmpty());
  EXPECT_THAT(limits.writes, IsEmpty());
  EXPECT_EQ(limits.storage_path, "");
}

TEST(LimitsCommand, ACacheThatCannotBeWrittenIsNoFailure) {
  const SharedFolder folder;
  if (world().rank() == 0) std::ofstream(folder / "cache") << "no folder";
  world().barrier();
  LimitsOptions options;
  options.backend = BackendChoice::kCpu;
  options.output = folder / "limits.json";
  EXPECT_EQ(run_limits_command(world(), options, small()), 0);
  world().barrier();
  EXPECT_EQ(MachineLimits::from_json(read_text(*options.output), "the output").backend, "cpu");
}

TEST(LimitsCommand, RefusesPathsOnAllRanksBeforeAnythingIsMeasuredOrWritten) {
  const SharedFolder folder;
  if (world().rank() == 0) std::ofstream(folder / "old.json") << "of yesterday";
  world().barrier();
  const auto refusal = [&](const std::string& path, const std::string& output) {
    LimitsOptions options;
    options.backend = BackendChoice::kCpu;
    options.path = path;
    options.output = output;
    try {
      run_limits_command(world(), options, small());
      ADD_FAILURE() << path << " and " << output << " were taken";
    } catch (const PeerError&) {
      EXPECT_NE(world().rank(), 0);
    } catch (const IoError& error) {
      EXPECT_EQ(world().rank(), 0);
      EXPECT_TRUE(world().leaving_together());
      return std::string(error.what());
    }
    return std::string();
  };
  const auto expect_refused = [&](const std::string& path, const std::string& output,
                                  const std::string& why) {
    const std::string text = refusal(path, output);
    if (world().rank() == 0) {
      EXPECT_THAT(text, HasSubstr(why));
    }
  };
  expect_refused(folder / "none", folder / "old.json", "none: no file can be made there");
  expect_refused(folder / "none", folder / "new.json", "none: no file can be made there");
  expect_refused(folder.disk(), folder / "none/new.json", "none/new.json: --output cannot");
  expect_refused(folder.disk(), folder.disk(), "Is a directory");
  EXPECT_EQ(read_text(folder / "old.json"), "of yesterday");
  EXPECT_FALSE(std::filesystem::exists(folder / "new.json"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.disk()));
  EXPECT_FALSE(std::filesystem::exists(folder / "cache"));
}

}  // namespace
}  // namespace zi::test
