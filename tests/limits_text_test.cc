#include "measure/limits_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

namespace zi {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

MachineLimits four_gpus() {
  MachineLimits limits;
  limits.source = "measured on node7, 2026-01-31";
  limits.backend = "cuda";
  limits.device = "NVIDIA H200";
  limits.world = 4;
  limits.ranks_per_host = 2;
  limits.device_bytes = 139 * 1024 * kMiB;
  limits.host_bytes = 240 * 1024 * kMiB;
  limits.copy_alone = 55.2e9;
  limits.copy_together = 43e9;
  limits.gather = {{16 * kMiB, 273e9}, {4096 * kMiB, 351e9}};
  limits.network = {{16 * kMiB, 5.5e9}, {4096 * kMiB, 49.5e9}};
  limits.device_memory = 4.28e12;
  limits.host_memory = 0;  // not measured
  limits.storage_path = "/mnt/nvme";
  limits.storage_method = "io_uring + O_DIRECT";
  limits.reads = {{1, 131072, 0.31e9}, {32, 131072, 1.7e9}, {1, 4 * kMiB, 1.25e9}};
  limits.writes = {{1, 131072, 0.2e9}};
  limits.products = {{1, 4.4e12, 4.4e12}, {2048, 0.386e12, 790e12}};
  limits.seconds = 41.26;
  return limits;
}

/// The lines as words, one blank between them.
std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string joined;
    for (std::string word; words >> word;) joined += (joined.empty() ? "" : " ") + word;
    out.push_back(joined);
  }
  return out;
}

TEST(LimitsText, SaysEveryRateWithItsUnit) {
  EXPECT_THAT(
      lines_of(limits_text(four_gpus())),
      testing::ElementsAre(
          "4 ranks on 2 hosts, cuda backend, NVIDIA H200; 240 GiB of host memory free, 139 GiB on "
          "each device",
          "measured on node7, 2026-01-31, in 41.3 s; rates of one rank while all ranks work, "
          "unless a line says otherwise",
          "", "memory GB/s",                                               //
          "pinned memory to device, one rank alone 55.2",                  //
          "pinned memory to device, all ranks at once 43.0",               //
          "device memory, read and written by a copy 4280",                //
          "host memory, read and written, all ranks of a host -",          //
          "", "all-gather in a host: received from its other ranks GB/s",  //
          "16 MiB gathered 273", "4 GiB gathered 351",                     //
          "", "all-gather of all: received by a host from the others GB/s", "16 MiB gathered 5.50",
          "4 GiB gathered 49.5",  //
          "", "io_uring + O_DIRECT on /mnt/nvme: GB/s of a host, by blocks in flight", "read 1 32",
          "blocks of 128 KiB 0.310 1.70", "blocks of 4 MiB 1.25 -",  //
          "written 1", "blocks of 128 KiB 0.200",                    //
          "", "products in bfloat16 GB/s of weights TFLOP/s",        //
          "1 row 4400 4.40", "2048 rows 386 790"));
}

TEST(LimitsText, LeavesOutWhatWasNotMeasured) {
  MachineLimits limits = four_gpus();
  limits.world = limits.ranks_per_host = 1;
  limits.device_bytes = 0;
  limits.gather.clear();
  limits.network.clear();
  limits.reads.clear();
  const std::string text = limits_text(limits);
  EXPECT_THAT(text, testing::StartsWith("1 rank on 1 host, "));
  EXPECT_THAT(text, testing::Not(testing::AnyOf(testing::HasSubstr("all-gather"),
                                                testing::HasSubstr("io_uring"),
                                                testing::HasSubstr("on each device"))));
}

TEST(LimitsText, KeepsItsColumnsInLine) {
  std::istringstream lines(limits_text(four_gpus()));
  std::size_t width = 0;
  std::string line;
  std::getline(lines, line);
  std::getline(lines, line);
  for (; std::getline(lines, line);) {
    // The first row of digits of each table ends where its others end.
    const bool row = line.starts_with("  ") && line.find("written") == std::string::npos;
    if (!row || line.find("blocks of") != std::string::npos || line.starts_with("  read")) continue;
    if (width == 0) width = line.size();
    EXPECT_EQ(line.size(), width) << line;
  }
  EXPECT_GT(width, 40u);
}

}  // namespace
}  // namespace zi
