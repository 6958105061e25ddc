// The memory promise, on a checkpoint of more than 2 GB: a rank's peak is its shards, slots and KV,
// and 256 MiB; and it is what was planned.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "cli_harness.h"
#include "zero_infer/bytes.h"

namespace zi::test {
namespace {

/// The number before ` GiB` or ` MiB` that follows `what` in a summary, in bytes.
double bytes_after(const std::string& text, const std::string& what) {
  const auto at = text.find(what);
  if (at == std::string::npos) {
    ADD_FAILURE() << "no `" << what << "` in: " << text;
    return 0;
  }
  std::size_t end = 0;
  const double number = std::stod(text.substr(at + what.size()), &end);
  const std::string unit = text.substr(at + what.size() + end + 1, 3);
  return number * (unit == "GiB" ? 1 << 30 : 1 << 20);
}

/// What the program takes in addition to its plan, as a run of the small bundled model shows.
double program_bytes(int ranks) {
  const Ended ended =
      run_job(ranks, {"--model", model(), "--prompt", "In the beginning", "--max-new-tokens", "2"});
  EXPECT_EQ(ended.code, 0) << ended.err;
  return bytes_after(ended.err, "peak memory of a rank ") - bytes_after(ended.err, "(planned ");
}

TEST(Memory, PeakIsWhatWasPlannedAndStaysWithinShardsSlotsKvAnd256MiB) {
  const TemporaryFolder folder;
  if (std::filesystem::space(folder.path()).available < (std::size_t{7} << 30)) {
    GTEST_SKIP() << "needs 7 GiB of disk for a checkpoint of 2.1 GB and its shard files";
  }
  const std::string made =
      fmt::format("{} --config {}/config/models/bloom-1b1/config.json --out {}", ZI_MAKE_CHECKPOINT,
                  ZI_SOURCE_DIR, folder / "model");
  ASSERT_EQ(std::system(made.c_str()), 0);
  const std::string tokenizer = model() + "/tokenizer.json";
  std::filesystem::copy(tokenizer, folder / "model/tokenizer.json");

  const double blocks = 24.0 * 12 * 1536 * 1536 * 2, block = blocks / 24;
  const double head = 250880.0 * 1536 * 2;
  struct Case {
    int ranks;
    std::vector<std::string> flags;
    double shards_and_slots;  // of a rank
  };
  const std::vector<Case> cases = {
      {1, {}, blocks + head},
      {1, {"--cpu-offload"}, blocks + head + 2 * block},
      {1, {"--nvme-offload-path", folder / "nvme"}, head + 2 * block},
      {2, {}, (blocks + head) / 2 + 2 * block},
  };
  for (const Case& c : cases) {
    std::vector<std::string> arguments = {"--model",
                                          folder / "model",
                                          "--prompt",
                                          "In the beginning",
                                          "--max-new-tokens",
                                          "2",
                                          "--ignore-eos",
                                          "--batch-size",
                                          "4",
                                          "--kv-budget",
                                          "64MiB"};
    arguments.insert(arguments.end(), c.flags.begin(), c.flags.end());
    const Ended ended = run_job(c.ranks, arguments);
    ASSERT_EQ(ended.code, 0) << ended.err;
    const double peak = bytes_after(ended.err, "peak memory of a rank ");
    const double promised = c.shards_and_slots + (64 << 20) + (256 << 20);
    EXPECT_LE(peak, promised) << ended.err;
    const double planned = bytes_after(ended.err, "(planned ");
    const double program = program_bytes(c.ranks);
    EXPECT_NEAR(peak, planned + program, 0.03 * planned) << ended.err;
    fmt::print(
        "[          ] {} rank(s) {}: peak {}, planned {} beside {} of the program, promised {}\n",
        c.ranks, fmt::join(c.flags, " "), format_memory(peak), format_memory(planned),
        format_memory(program), format_memory(promised));
  }
}

}  // namespace
}  // namespace zi::test
