#include "engine/other_shard_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "offload/shard_file.h"
#include "synthetic_checkpoint.h"

namespace zi {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr std::uint64_t kIdentity = 0x0123456789abcdef;

class OtherShardFiles : public ::testing::Test {
 protected:
  std::filesystem::path path_of(const ShardFileKey& key) const {
    return shard_file_path(directory_.path() / "nvme", key);
  }
  /// Writes a file of 3 MB where a shard file of this key would be.
  void write(const ShardFileKey& key) const {
    std::filesystem::create_directories(path_of(key).parent_path());
    testing::write_text(path_of(key), std::string(3'000'000, 'x'));
  }
  std::vector<std::string> lines() const { return other_shard_files(path_of(own_), kIdentity); }

  testing::TemporaryDirectory directory_;
  ShardFileKey own_{.model_identity = kIdentity,
                    .model_name = "bloom-0123456789abcdef",
                    .world = 2,
                    .rank = 0,
                    .dtype = DType::kBFloat16};
};

TEST_F(OtherShardFiles, HasNothingToSayOfAnEmptyOrMissingFolder) {
  EXPECT_THAT(lines(), IsEmpty());
  write(own_);
  EXPECT_THAT(lines(), IsEmpty());
}

TEST_F(OtherShardFiles, TellsOtherTimesFromOtherWeights) {
  ShardFileKey touched = own_;
  touched.model_identity ^= 1;
  write(touched);
  ShardFileKey changed = own_;
  changed.model_identity ^= std::uint64_t{1} << 32;
  write(changed);
  EXPECT_THAT(lines(),
              UnorderedElementsAre(
                  AllOf(HasSubstr("written anew"), HasSubstr("times of the checkpoint's files"),
                        HasSubstr(path_of(touched).parent_path().string()), HasSubstr("2.86 MiB")),
                  AllOf(HasSubstr("other weights of the same name"),
                        HasSubstr(path_of(changed).parent_path().string()))));
}

TEST_F(OtherShardFiles, KeepsToAFewLinesWithTheReasonFirst) {
  ShardFileKey other = own_;
  for (std::uint64_t i = 1; i <= 7; ++i) {
    other.model_identity = kIdentity ^ i << 32;
    write(other);
  }
  other.model_identity = kIdentity ^ 1;
  write(other);
  ASSERT_EQ(lines().size(), 4u);
  EXPECT_THAT(lines().front(), HasSubstr("written anew"));
  EXPECT_THAT(lines().back(), AllOf(HasSubstr("5 more such folders"), HasSubstr("nvme")));
}

TEST_F(OtherShardFiles, LeavesOtherModelsTypesAndWorldsAlone) {
  for (int i = 0; i < 3; ++i) {
    ShardFileKey other = own_;
    other.model_identity ^= 1;
    if (i == 0) other.model_name = "bloom-fedcba9876543210";
    if (i == 1) other.world = 3;
    if (i == 2) other.dtype = DType::kFloat16;
    write(other);
  }
  std::filesystem::create_directories(directory_.path() /
                                      "nvme/bloom-0123456789abcdef-zz23456789abcdef-bf16-world2");
  EXPECT_THAT(lines(), IsEmpty());
}

}  // namespace
}  // namespace zi
