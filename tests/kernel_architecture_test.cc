#include "backend/cuda/kernel_architecture.h"

#include <gtest/gtest.h>

namespace zi {
namespace {

TEST(KernelFeatures, FollowWhatTheKernelsWereCompiledForAndNotTheDeviceAlone) {
  constexpr KernelFeatures kNone;
  EXPECT_EQ(kernel_features(80, 80), kNone);
  EXPECT_EQ(kernel_features(80, 89), kNone);
  // PTX of an older architecture, which the driver compiles for the device.
  EXPECT_EQ(kernel_features(80, 90), kNone);
  EXPECT_EQ(kernel_features(86, 120), kNone);
  // No code at all.
  EXPECT_EQ(kernel_features(0, 90), kNone);

  EXPECT_EQ(kernel_features(90, 90), (KernelFeatures{true, true}));
  EXPECT_EQ(kernel_features(90, 100), (KernelFeatures{true, false}));
  EXPECT_EQ(kernel_features(120, 120), (KernelFeatures{true, false}));
}

TEST(HasCodeFor, MachineCodeRunsOnItsMajorVersionFromItsMinorOn) {
  for (const int device : {80, 86, 89}) EXPECT_TRUE(has_code_for("80-real", device)) << device;
  for (const int device : {75, 90, 100}) EXPECT_FALSE(has_code_for("80-real", device)) << device;
  EXPECT_FALSE(has_code_for("86-real", 80));
  EXPECT_FALSE(has_code_for("90-real", 100));
  EXPECT_TRUE(has_code_for("100-real", 103));
}

TEST(HasCodeFor, PtxRunsOnItsArchitectureAndOnAllNewerOnes) {
  for (const char* const built : {"80", "80-virtual"}) {
    for (const int device : {80, 89, 90, 120}) EXPECT_TRUE(has_code_for(built, device)) << device;
    EXPECT_FALSE(has_code_for(built, 75));
  }
  EXPECT_FALSE(has_code_for("90", 89));
}

TEST(HasCodeFor, CodeOfOneDeviceOrOneFamilyRunsNowhereElse) {
  for (const char* const built : {"90a", "90a-real", "90a-virtual"}) {
    EXPECT_TRUE(has_code_for(built, 90)) << built;
    EXPECT_FALSE(has_code_for(built, 100)) << built;
  }
  EXPECT_TRUE(has_code_for("100f-real", 103));
  EXPECT_FALSE(has_code_for("100f", 120));
}

TEST(HasCodeFor, AnyEntryOfAListWillDo) {
  const char* const usual = "80-real 90";
  for (const int device : {80, 86, 90, 100}) EXPECT_TRUE(has_code_for(usual, device)) << device;
  EXPECT_FALSE(has_code_for("80-real 90-real", 100));
  EXPECT_TRUE(has_code_for("80-real 90-real 100-real", 100));
  EXPECT_FALSE(has_code_for("", 90));
  EXPECT_TRUE(has_code_for("native", 90));
}

}  // namespace
}  // namespace zi
