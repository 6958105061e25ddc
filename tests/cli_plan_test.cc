// `zero-infer plan`, as its users see it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "cli_harness.h"

namespace zi::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

const std::string kModels = std::string(ZI_SOURCE_DIR) + "/config/models/bloom-";

Ended run_plan(std::vector<std::string> arguments, int ranks = 0) {
  arguments.insert(arguments.begin(), "plan");
  return run_job(ranks, arguments);
}

/// Refused by one line on stderr that holds `text`, with exit code 2.
void expect_plan_refused(const std::vector<std::string>& arguments, const std::string& text) {
  const Ended ended = run_plan(arguments);
  EXPECT_EQ(ended.code, 2) << ended.err;
  EXPECT_EQ(std::ranges::count(ended.err, '\n'), 1) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr(text));
  EXPECT_EQ(ended.out, "");
}

/// The lines of a table of a plan that name bytes of a part, without what this machine has free.
std::vector<std::string> parts_of(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("  ") && line.find("iB  ") != std::string::npos) {
      parts.push_back(line.substr(0, line.find(" that a rank can have")));
    }
  }
  for (std::string& part : parts) {
    if (part.find("  of ") != std::string::npos) part.resize(part.find("  of "));
  }
  return parts;
}

TEST(CliPlan, PlansADescribedMachineWithoutMpi) {
  setenv("OMPI_MCA_pml", "none-such", 1);  // MPI_Init would fail
  const Ended ended = run_plan(
      {"--model", kModels + "176b", "--ranks", "8", "--gpus-like", "h100", "--travel", "weights"});
  const Ended run = run_job(0, {"--model", model(), "--prompt", "Jesus wept."});
  unsetenv("OMPI_MCA_pml");
  EXPECT_NE(run.code, 0);
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_THAT(ended.out, AllOf(HasSubstr("gather               302 GB"), HasSubstr("<- bottleneck"),
                               HasSubstr("What would help")));
  EXPECT_EQ(ended.err, "");
}

TEST(CliPlan, SaysWhatAGpuWithoutPackedProductsDoesThatItDoesNotCount) {
  const std::string note = "packed weights are unpacked to memory for each product";
  const std::string shapes = std::string(ZI_SOURCE_DIR) + "/config/models/qwen2.5-1.5b";
  const auto gpu = [](const char* name) {
    return std::vector<std::string>{"--gpus-like", name, "--host-memory", "64GiB"};
  };
  const auto planned = [](std::vector<std::string> arguments, const std::string& shape) {
    arguments.insert(arguments.end(), {"--model", shape});
    const Ended ended = run_plan(arguments);
    EXPECT_EQ(ended.code, 0) << ended.err;
    return ended.out;
  };
  EXPECT_THAT(planned(gpu("a100"), shapes + "-awq"), HasSubstr(note));
  EXPECT_THAT(planned(gpu("a100"), shapes), Not(HasSubstr(note)));
  EXPECT_THAT(planned(gpu("h100"), shapes + "-awq"), Not(HasSubstr(note)));
  EXPECT_THAT(planned({"--backend", "cpu"}, shapes + "-awq"), Not(HasSubstr(note)));
}

TEST(CliPlan, SpeaksOnceUnderMpirunAndForAllOfItsRanks) {
  const Ended ended = run_plan({"--model", model(), "--json", "--backend", "cpu"}, 2);
  ASSERT_EQ(ended.code, 0) << ended.err;
  const auto lines = json_lines(ended.out);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].at("ranks"), 2);
  EXPECT_EQ(lines[0].at("ranks_per_host"), 2);
}

TEST(CliPlan, BadInputGetsOneClearLine) {
  const std::vector<std::string> base = {"--model", kModels + "7b1"};
  const auto with = [&base](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return more;
  };
  expect_plan_refused(with({"--gpus-like", "h1000"}), "did you mean `h100`?");
  expect_plan_refused(with({"--gpus-like", "abacus"}), "rtx4090");
  expect_plan_refused(with({"--gpus-like", "h100", "--batch-size", "0"}),
                      "--batch-size: must be from 1");
  expect_plan_refused(with({"--gpus-like", "h100", "--batch-size", "1,x"}),
                      "`x` is not a whole number");
  expect_plan_refused(with({"--gpus-like", "h100", "--batch-size", "1,,2"}), "--batch-size");
  expect_plan_refused(with({"--gpus-like", "h100", "--tokens", "0"}), "--tokens: must be from 1");
  expect_plan_refused(with({"--gpus-like", "h100", "--ranks", "many"}), "--ranks");
  expect_plan_refused(with({"--gpus-like", "h100", "--host-memory", "much"}), "--host-memory");
  expect_plan_refused(with({"--limits", "/nonexistent/limits.json"}), "No such file");
  expect_plan_refused(with({"--ranks", "8", "--ranks-per-host", "3"}), "--ranks-per-host 3");
  expect_plan_refused({"--model", "/nonexistent/model"}, "/nonexistent/model");
  expect_plan_refused({"--gpus-like", "h100"}, "no model");
}

TEST(CliPlan, ARunIsRefusedWithTheTableOfItsPlan) {
  const std::vector<std::string> arguments = {
      "--model", kModels + "176b", "--load-format", "dummy", "--backend",
      "cpu",     "--kv-budget",    "1GiB"};
  const Ended plan = run_plan(arguments);
  std::vector<std::string> run_arguments = arguments;
  run_arguments.insert(run_arguments.end(), {"--prompt", "Jesus wept."});
  const Ended run = run_job(0, run_arguments);
  if (plan.code == 0) GTEST_SKIP() << "this host can hold the 176b shape";
  EXPECT_EQ(plan.code, 2);
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("the plan does not fit"));
  const auto parts = parts_of(run.err);
  EXPECT_GE(parts.size(), 8u) << run.err;
  EXPECT_EQ(parts, parts_of(plan.err));
}

TEST(CliPlan, ThePlanOfARunIsTheOneThatIsPlanned) {
  const std::vector<std::string> arguments = {"--model", model(), "--backend", "cpu",
                                              "--cpu-offload"};
  const Ended plan = run_plan(arguments);
  ASSERT_EQ(plan.code, 0) << plan.err;
  std::vector<std::string> run_arguments = arguments;
  run_arguments.insert(run_arguments.end(), {"--prompt", "Jesus wept.", "--verbose"});
  const Ended run = run_job(0, run_arguments);
  ASSERT_EQ(run.code, 0) << run.err;
  const auto parts = parts_of(plan.out);
  EXPECT_GE(parts.size(), 8u) << plan.out;
  EXPECT_EQ(parts_of(run.err), parts);
}

}  // namespace
}  // namespace zi::test
