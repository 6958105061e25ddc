// Launches that may start early (launch.cuh), in two programs: with kernels compiled as the backend
// is, and with PTX of 80 alone, as in a build for an older card that runs on a newer one.

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "backend/cuda/kernel_architecture.h"
#include "backend/cuda/kernel_probe.h"
#include "launch_chain.h"
#include "zero_infer/cuda_backend.h"

namespace zi::test {
namespace {

struct CudaLaunch : testing::Test {
  void SetUp() override {
    std::string why;
    if (cuda_device_count(&why) == 0) GTEST_SKIP() << "no GPU to test on: " << why;
    device = make_cuda_device(0);
    if (compiled_architecture_of_chain(&why) == 0) {
      GTEST_SKIP() << "the driver cannot compile this test's PTX: " << why;
    }
  }
  std::unique_ptr<Device> device;
};

TEST_F(CudaLaunch, OverlapsJustWhereTheKernelsThatRunCanWait) {
  const int compiled = architecture_that_runs();
  EXPECT_EQ(compiled_architecture_of_chain(nullptr), compiled);
  EXPECT_GE(compiled, kLeastArchitecture);
  EXPECT_LE(compiled, device_architecture());
  if (ZI_CHAIN_ARCHITECTURE != 0) {
    EXPECT_EQ(compiled, ZI_CHAIN_ARCHITECTURE);
  }
  EXPECT_EQ(chain_overlaps_launches(),
            kernel_features(compiled, device_architecture()).early_launches);
}

TEST_F(CudaLaunch, AKernelReadsWhatTheOneBeforeWrote) {
  constexpr std::uint32_t kLinks = 500;
  for (const std::uint32_t value : run_launch_chain(kLinks)) ASSERT_EQ(value, kLinks);
}

TEST_F(CudaLaunch, TheBackendsKernelsAreOnesThatTheBuildSaysTheDeviceRuns) {
  EXPECT_TRUE(has_code_for(architectures_of_build(), device_architecture()))
      << architectures_of_build();
  const int compiled = compiled_architecture_of_backend();
  EXPECT_GE(compiled, kLeastArchitecture);
  EXPECT_LE(compiled, device_architecture());
  const bool lacks = kernel_features(compiled, device_architecture()).early_launches !=
                     kernel_features(device_architecture(), device_architecture()).early_launches;
  EXPECT_EQ(cuda_build_note().empty(), !lacks) << cuda_build_note();
}

TEST_F(CudaLaunch, AKernelWithoutCodeForTheDeviceIsToldWithTheReasonAndLeavesNoError) {
  std::string why;
  const int no_kernel = 0;
  EXPECT_EQ(compiled_architecture(&no_kernel, &why), 0);
  EXPECT_FALSE(why.empty());
  const std::uint32_t kLinks = 2;
  EXPECT_EQ(run_launch_chain(kLinks).front(), kLinks);
}

}  // namespace
}  // namespace zi::test
