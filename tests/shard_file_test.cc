#include "offload/shard_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <xxhash.h>

#include <csignal>
#include <fstream>
#include <sstream>

#include "base/file_descriptor.h"
#include "tests/shard_test_util.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

using test::contents;
using test::files_in;
using test::flip_byte;
using test::message_of;
using test::read_header;
using test::TestUnits;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
namespace fs = std::filesystem;

class ShardFile : public testing::Test {
 protected:
  const fs::path& directory() const { return directory_.path(); }
  std::string failure_of_prepare() {
    return message_of<IoError>([&] { units_.prepare(directory()); });
  }

  test::TemporaryDirectory directory_;
  TestUnits units_{4};
};

TEST_F(ShardFile, HoldsEveryShardAtItsPlaceWithItsChecksums) {
  std::size_t told = 0;
  const fs::path path =
      units_.prepare(directory(), 0, 4, [&](std::size_t bytes) { told += bytes; });
  EXPECT_EQ(path, directory() / "test_model_1-0000000000001234-bfloat16-world2" / "rank-1.shard");
  const std::vector<std::byte> bytes = contents(path);
  const ShardHeader header = read_header(path);
  EXPECT_EQ(header.key.model_name, "test/model 1");
  ASSERT_EQ(header.units.size(), 4u);
  std::size_t sum = 0;
  for (const ShardUnit& unit : header.units) {
    const std::vector<std::byte> shard = units_.shard(unit.unit);
    ASSERT_EQ(unit.bytes, shard.size());
    EXPECT_EQ(unit.offset % kPageBytes, 0u);
    EXPECT_EQ(std::memcmp(bytes.data() + unit.offset, shard.data(), shard.size()), 0);
    for (std::size_t e = 0; e < header.extent_count(unit); ++e) {
      const ShardExtent extent = header.extent(unit, e);
      EXPECT_EQ(extent.checksum, XXH3_64bits(bytes.data() + extent.offset, extent.bytes));
    }
    sum += unit.bytes;
  }
  EXPECT_EQ(told, sum);
  EXPECT_EQ(header.file_bytes, bytes.size());
  EXPECT_EQ(files_in(directory()), std::vector<std::string>{"rank-1.shard"});
}

TEST_F(ShardFile, IsReusedWithoutBeingWrittenOrFullyRead) {
  const fs::path path = units_.prepare(directory());
  const auto time = fs::last_write_time(path);
  const int reads = units_.source.reads;
  flip_byte(path, read_header(path).units[1].offset);  // the store's business, not the header's
  const auto flipped_time = fs::last_write_time(path);
  EXPECT_GE(flipped_time, time);
  EXPECT_EQ(units_.prepare(directory()), path);
  EXPECT_EQ(units_.prepare(directory(), 1, 3), path);  // some of its units
  EXPECT_EQ(fs::last_write_time(path), flipped_time);
  EXPECT_EQ(units_.source.reads, reads);
}

TEST_F(ShardFile, ThatLacksUnitsIsWrittenAnewWithItsOwnAndTheNew) {
  const fs::path path = units_.prepare(directory(), 0, 2);
  units_.prepare(directory(), 1, 4);
  const ShardHeader header = read_header(path);
  ASSERT_EQ(header.units.size(), 4u);
  const std::vector<std::byte> bytes = contents(path);
  for (const ShardUnit& unit : header.units) {
    const std::vector<std::byte> shard = units_.shard(unit.unit);
    EXPECT_EQ(std::memcmp(bytes.data() + unit.offset, shard.data(), shard.size()), 0) << unit.unit;
  }
}

TEST_F(ShardFile, WithDamagedUnitsIsNotCopiedFrom) {
  const fs::path path = units_.prepare(directory(), 0, 2);
  flip_byte(path, read_header(path).units[0].offset + 17000);
  EXPECT_THAT(
      message_of<IoError>([&] { units_.prepare(directory(), 1, 4); }),
      AllOf(HasSubstr(path.string()), HasSubstr("checksum of unit 0"), HasSubstr("remove it")));
  EXPECT_EQ(read_header(path).units.size(), 2u) << "the old file stays";
  EXPECT_EQ(files_in(directory()).size(), 1u);
}

TEST_F(ShardFile, OfAnotherJobIsRefusedWithWhatDiffers) {
  const fs::path path = units_.prepare(directory());
  const auto refusal = [&](auto change) {
    TestUnits job(4);
    change(job.key);
    const fs::path place = shard_file_path(directory(), job.key);
    fs::create_directories(place.parent_path());
    if (place != path) fs::copy_file(path, place);
    return message_of<IoError>([&] { job.prepare(directory()); });
  };
  EXPECT_THAT(refusal([](ShardFileKey& key) { key.world = 4; }),
              HasSubstr("was written for 2 ranks, this job has 4; remove it or run with -np 2"));
  EXPECT_THAT(refusal([](ShardFileKey& key) { key.rank = 0; }),
              HasSubstr("was written for rank 1, this is rank 0"));
  EXPECT_THAT(refusal([](ShardFileKey& key) { key.format = DType::kFloat16; }),
              HasSubstr("weights in bfloat16, this job uses float16; remove it"));
  EXPECT_THAT(refusal([](ShardFileKey& key) { key.format = kInt4Weights; }),
              HasSubstr("weights in bfloat16, this job uses int4g16f8; remove it"));
  EXPECT_THAT(refusal([](ShardFileKey& key) { key.model_identity = 0x99; }),
              AllOf(HasSubstr("other weights"), HasSubstr("0000000000001234"),
                    HasSubstr("0000000000000099")));
  EXPECT_THAT(message_of<IoError>([&] { OpenShardFile::open(path).check_key(units_.key, 8192); }),
              HasSubstr("extents of 16384 bytes, this job reads 8192"));
}

TEST_F(ShardFile, WithAShardOfAnotherSizeIsRefused) {
  units_.prepare(directory());
  const TestUnits other(4, 500);
  EXPECT_THAT(message_of<IoError>([&] { other.prepare(directory()); }),
              AllOf(HasSubstr("bytes of unit 0, this job needs"), HasSubstr("remove it")));
}

TEST_F(ShardFile, IsNotWrittenByTwoJobsAtOnce) {
  const fs::path path = shard_file_path(directory(), units_.key);
  fs::create_directories(path.parent_path());
  {
    const FileDescriptor other(
        ::open((path.string() + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
    ASSERT_EQ(::flock(other.get(), LOCK_EX), 0);
    EXPECT_THAT(failure_of_prepare(), HasSubstr("is being written by another job"));
    EXPECT_EQ(files_in(directory()).size(), 0u);
  }
  EXPECT_EQ(units_.prepare(directory()), path);
}

TEST_F(ShardFile, LeavesNothingBehindWhenItsWeightsCannotBeRead) {
  std::atomic<int> left = 6;
  units_.source.on_read = [&] {
    if (--left <= 0) throw CheckpointError("the tensor is gone");
  };
  EXPECT_EQ(message_of<CheckpointError>([&] { units_.prepare(directory()); }),
            "the tensor is gone");
  EXPECT_EQ(files_in(directory()).size(), 0u);
}

TEST_F(ShardFile, LeavesNothingBehindWhenItsProgressThrows) {
  EXPECT_EQ(message_of<Error>([&] {
              units_.prepare(directory(), 0, 4, [](std::size_t) { throw Error("interrupted"); });
            }),
            "interrupted");
  EXPECT_EQ(files_in(directory()).size(), 0u);
}

TEST_F(ShardFile, LeavesNothingBehindWhenAWriteFails) {
  ASSERT_NE(std::signal(SIGXFSZ, SIG_IGN), SIG_ERR);
  struct rlimit old {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  units_.source.on_read = [&] {  // after the check of the space
    const struct rlimit low { 8192, old.rlim_max };
    ::setrlimit(RLIMIT_FSIZE, &low);
  };
  const std::string message = failure_of_prepare();
  ::setrlimit(RLIMIT_FSIZE, &old);
  EXPECT_THAT(message, AllOf(HasSubstr("rank-1.shard"), HasSubstr("cannot write"),
                             HasSubstr("at offset"), HasSubstr("File too large")));
  EXPECT_EQ(files_in(directory()).size(), 0u);
}

TEST_F(ShardFile, AboveTheLimitOfAFilesSizeIsRefusedBeforeItIsWritten) {
  struct rlimit old {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const struct rlimit low { 65536, old.rlim_max };
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &low), 0);
  const std::string message = failure_of_prepare();
  ::setrlimit(RLIMIT_FSIZE, &old);
  EXPECT_THAT(message, AllOf(HasSubstr("64.0 KiB"), HasSubstr("ulimit -f")));
  EXPECT_EQ(units_.source.reads, 0);
}

TEST_F(ShardFile, ThatDoesNotFitTheDiskIsRefusedWithTheNumbers) {
  const fs::path small = directory() / "small";
  fs::create_directories(small);
  if (::mount("none", small.c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "no right to mount a small tmpfs";
  }
  const std::string message = message_of<IoError>([&] { units_.prepare(small); });
  const std::size_t left = files_in(small).size();
  // Weights that are no more have taken the room.
  const std::string old = "test_model_1-000000aa00000000-bfloat16-world2";
  fs::create_directories(small / old);
  std::ofstream(small / old / "rank-0.shard") << std::string(40'000, 'x');
  const std::string again = message_of<IoError>([&] { units_.prepare(small); });
  ::umount2(small.c_str(), MNT_DETACH);
  EXPECT_THAT(message, AllOf(HasSubstr("needs"), HasSubstr("KiB"), HasSubstr("free; make room"),
                             HasSubstr(small.string()), HasSubstr("--nvme-offload-path")));
  EXPECT_THAT(again, AllOf(HasSubstr("needs"), HasSubstr(old + " (41.0 kB)"),
                           HasSubstr("remove the folders that no job needs any more")));
  EXPECT_EQ(left, 0u);
  EXPECT_EQ(units_.source.reads, 0);
}

TEST_F(ShardFile, InAPlaceThatCannotBeWrittenNamesIt) {
  const fs::path file = directory() / "file";
  std::ofstream(file) << "text";
  EXPECT_THAT(message_of<IoError>([&] { units_.prepare(file / "below"); }),
              AllOf(HasSubstr(file.string()), HasSubstr("is a plain file"),
                    HasSubstr("--nvme-offload-path")));
  EXPECT_THAT(message_of<IoError>([&] { units_.prepare("/proc/zi"); }),
              AllOf(HasSubstr("/proc/zi"), HasSubstr("--nvme-offload-path")));
  const fs::path frozen = directory() / "frozen";
  fs::create_directories(frozen);
  if (::mount("none", frozen.c_str(), "tmpfs", MS_RDONLY, "size=64k") != 0) {
    GTEST_SKIP() << "no right to mount a read-only tmpfs";
  }
  const std::string message = message_of<IoError>([&] { units_.prepare(frozen); });
  ::umount2(frozen.c_str(), MNT_DETACH);
  EXPECT_THAT(message, AllOf(HasSubstr(frozen.string()), HasSubstr("Read-only file system")));
}

TEST_F(ShardFile, IsNotMadeOfArgumentsThatMakeNone) {
  EXPECT_THROW(units_.prepare(directory(), 0, 0), Error);
  EXPECT_THROW(plan_shard_file(units_.key, 4096, {{1, 4096}, {1, 4096}}), Error);
  EXPECT_THROW(plan_shard_file(units_.key, 4096, {{1, 5000}}), Error);
  EXPECT_THROW(plan_shard_file(units_.key, 5000, {{1, 4096}}), Error);
  EXPECT_THROW(plan_shard_file(units_.key, 4096, {{1, std::size_t{1} << 50}}), Error);
}

TEST_F(ShardFile, OfOtherWeightsIsNamedOnceByRank0WhenItWritesItsOwn) {
  const auto folder_of = [&](const ShardFileKey& key) {
    return shard_file_path(directory(), key).parent_path().filename().string();
  };
  const auto said_by = [&](const TestUnits& units) {
    testing::internal::CaptureStderr();
    units.prepare(directory());
    std::istringstream lines(testing::internal::GetCapturedStderr());
    std::string said;
    for (std::string line; std::getline(lines, line);) {
      if (line.find("also holds") != std::string::npos) said += line + "\n";
    }
    return said;
  };
  units_.key.rank = 0;
  EXPECT_EQ(said_by(units_), "") << "nothing else is there";
  TestUnits weights(4), name(4), ranks(4);
  weights.key.rank = name.key.rank = ranks.key.rank = 0;
  weights.key.model_identity = 0xabcdef00000000;
  name.key.model_name = "test";
  ranks.key.model_identity = 0xabcdef00000000;
  ranks.key.world = 4;
  EXPECT_EQ(said_by(name), "") << "another model's are no old ones of this";
  fs::create_directories(directory() / "test_model_1-notes");
  std::ofstream(directory() / "test_model_1-0000000000001235-bfloat16-world2") << "a file";

  const std::string said = said_by(weights);
  EXPECT_THAT(
      said, AllOf(HasSubstr(directory().string() + " also holds shard files of"),
                  HasSubstr("test_model_1"), HasSubstr(folder_of(units_.key)), HasSubstr(" kB)")));
  EXPECT_THAT(said, Not(HasSubstr("notes")));
  EXPECT_THAT(said, Not(HasSubstr("1235")));
  EXPECT_THAT(said, Not(HasSubstr(folder_of(weights.key))));
  EXPECT_EQ(std::ranges::count(said, '\n'), 1) << said;
  EXPECT_THAT(said, Not(HasSubstr("samples of the weights are the same")));
  EXPECT_EQ(said_by(weights), "") << "it uses the file that is there";
  // The same weights for other ranks, or in another format, are no older ones.
  EXPECT_THAT(said_by(ranks),
              AllOf(HasSubstr(folder_of(units_.key)), HasSubstr(folder_of(weights.key)),
                    Not(HasSubstr("samples of the weights are the same"))));
  TestUnits format(4);
  format.key.rank = 0;
  format.key.model_identity = weights.key.model_identity;
  format.key.format = DType::kFloat16;
  EXPECT_THAT(said_by(format), AllOf(HasSubstr(folder_of(weights.key)),
                                     Not(HasSubstr("samples of the weights are the same"))));
  TestUnits touched(4);  // the lower half of an identity is of the files' times
  touched.key.rank = 0;
  touched.key.model_identity = weights.key.model_identity ^ 1;
  EXPECT_THAT(said_by(touched), HasSubstr("samples of the weights are the same"));
  weights.key.rank = 1;
  EXPECT_EQ(said_by(weights), "") << "rank 0 has said it";
  EXPECT_TRUE(fs::exists(shard_file_path(directory(), units_.key))) << "nothing is removed";
}

TEST(ShardFilePath, CannotLeaveItsDirectory) {
  ShardFileKey key;
  key.model_name = "../../etc";
  EXPECT_EQ(shard_file_path("/d", key),
            fs::path("/d/model.._.._etc-0000000000000000-bfloat16-world1/rank-0.shard"));
}

}  // namespace
}  // namespace zi
