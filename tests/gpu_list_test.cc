#include "plan/gpu_list.h"

#include <gtest/gtest.h>

namespace zi {
namespace {

TEST(GpuList, KnowsDriversNames) {
  EXPECT_EQ(listed_name("NVIDIA H100 80GB HBM3"), "h100");
  EXPECT_EQ(listed_name("NVIDIA A100-SXM4-40GB"), "a100-40gb");
  EXPECT_EQ(listed_name("NVIDIA A100-SXM4-80GB"), "a100");
  EXPECT_EQ(listed_name("NVIDIA A10"), "a10");
  EXPECT_EQ(listed_name("NVIDIA GeForce RTX 4090"), "rtx4090");
  EXPECT_EQ(listed_name("NVIDIA GeForce RTX 4090 Laptop GPU"), std::nullopt);
  EXPECT_EQ(listed_name("Tesla T4"), std::nullopt);
}

TEST(GpuList, KnowsHopperByAnyOfItsNames) {
  for (const char* const name : {"h100", "H200", "NVIDIA H100 80GB HBM3", "NVIDIA GH200 480GB",
                                 "NVIDIA H20", "NVIDIA H800", "NVIDIA H100 PCIe"}) {
    EXPECT_TRUE(is_hopper(name)) << name;
  }
  for (const char* const name : {"a100", "NVIDIA B200", "NVIDIA GeForce RTX 4090", ""}) {
    EXPECT_FALSE(is_hopper(name)) << name;
  }
}

TEST(GpuList, EveryEntryMakesAWholeMachine) {
  for (const std::string& name : listed_gpus()) {
    const MachineLimits limits = limits_of_listed_gpu(name, 2, 2);
    EXPECT_GT(limits.device_bytes, std::size_t{20} << 30) << name;
    EXPECT_GE(limits.copy_alone, limits.copy_together) << name;
    EXPECT_GT(limits.copy_together, 0) << name;
    EXPECT_GT(limits.gather_rate(std::size_t{1} << 30), 0) << name;
    EXPECT_GT(limits.best_read(), 0) << name;
    for (std::size_t i = 1; i < limits.products.size(); ++i) {
      EXPECT_GT(limits.products[i].rows, limits.products[i - 1].rows) << name;
      EXPECT_GE(limits.products[i].operations_rate, limits.products[i - 1].operations_rate);
    }
    EXPECT_EQ(limits_of_listed_gpu(name, 1, 1).gather.size(), 0u);
  }
  EXPECT_EQ(limits_of_listed_gpu("H100", 1, 1).device, limits_of_listed_gpu("h100", 1, 1).device);
}

}  // namespace
}  // namespace zi
