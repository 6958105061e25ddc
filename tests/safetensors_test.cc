#include "checkpoint/safetensors.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "synthetic_checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using test::safetensors_bytes;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::ThrowsMessage;

SafetensorsHeader parse_header(const std::string& file) {
  return parse_safetensors_header(file, file.size(), "x.safetensors");
}

/// The header of one tensor `t`.
std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return fmt::format(R"({{"t":{{"dtype":"{}","shape":{},"data_offsets":{}}}}})", dtype, shape,
                     offsets);
}

/// Expects that `header` in front of `data_bytes` zeros is refused with a message that holds all of
/// these.
void expect_refused(const std::string& header, std::size_t data_bytes, const std::string& part,
                    const std::string& other = "") {
  const std::string file = safetensors_bytes(header, std::string(data_bytes, '\0'));
  EXPECT_THAT([&] { parse_header(file); },
              ThrowsMessage<CheckpointError>(
                  AllOf(HasSubstr("x.safetensors"), HasSubstr(part), HasSubstr(other))))
      << header;
}

TEST(Safetensors, ReadsTypesShapesAndAbsoluteOffsets) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]},)"
      R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}   )";
  const SafetensorsHeader parsed = parse_header(safetensors_bytes(header, std::string(16, 'x')));
  EXPECT_EQ(parsed.bytes, 8 + header.size());
  ASSERT_EQ(parsed.tensors.size(), 2u);
  const StoredTensor& a = parsed.tensors.at("a");
  EXPECT_EQ(a.dtype, "BF16");
  EXPECT_THAT(a.shape, ElementsAre(2, 3));
  EXPECT_EQ(a.begin, parsed.bytes);
  EXPECT_EQ(a.end, parsed.bytes + 12);
  EXPECT_EQ(parsed.tensors.at("b").begin, parsed.bytes + 12);
}

TEST(Safetensors, AcceptsScalarsEmptyTensorsAndTypesThatItCannotUse) {
  const std::string header = R"({"scalar":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                             R"("empty":{"dtype":"F32","shape":[0,7],"data_offsets":[3,3]},)"
                             R"("mask":{"dtype":"BOOL","shape":[2],"data_offsets":[8,10]},)"
                             R"("small":{"dtype":"F4","shape":[3,2],"data_offsets":[10,13]},)"
                             R"("later":{"dtype":"X9","shape":[5],"data_offsets":[13,14]}})";
  EXPECT_EQ(parse_header(safetensors_bytes(header, std::string(14, '\0'))).tensors.size(), 5u);
  EXPECT_THAT(parse_header(safetensors_bytes("{}", "")).tensors, IsEmpty());
}

TEST(Safetensors, NamesPromisedAndRealBytesOfATruncatedFile) {
  const std::string whole =
      safetensors_bytes(entry("BF16", "[2,2]", "[0,8]"), std::string(8, '\0'));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT([&] { parse_header(whole.substr(0, size)); },
                ThrowsMessage<CheckpointError>(
                    AllOf(HasSubstr("truncated"), HasSubstr(fmt::format("has {}", size)))))
        << size;
  }
  EXPECT_THAT([&] { parse_header(whole.substr(0, whole.size() - 3)); },
              ThrowsMessage<CheckpointError>(
                  HasSubstr(fmt::format("truncated: header promises {} bytes, the file has {}",
                                        whole.size(), whole.size() - 3))));
}

TEST(Safetensors, RefusesAFileThatIsLongerThanPromised) {
  expect_refused(entry("F16", "[1]", "[0,2]"), 3, "belongs to no tensor");
}

TEST(Safetensors, RefusesHeadersThatAreNoPlainJsonObject) {
  expect_refused("", 0, "not valid JSON");
  expect_refused("{", 0, "not valid JSON");
  expect_refused("{} x", 0, "not valid JSON");
  expect_refused("[]", 0, "a JSON object was expected, not array");
  expect_refused("{\"\xff\":1}", 0, "not valid JSON");
  expect_refused(R"({"t":{"dtype":"F16","shape":[NaN],"data_offsets":[0,2]}})", 2,
                 "not valid JSON");
  expect_refused(R"({"t":{"dtype":"F16","shape":[Infinity],"data_offsets":[0,2]}})", 2,
                 "not valid JSON");
  expect_refused(R"({"t":{"dtype":"F16","shape":[1e999],"data_offsets":[0,2]}})", 2,
                 "not valid JSON");
  expect_refused(R"({"t":[[[[[[1]]]]]]})", 0, "nested");
  expect_refused(R"({"t":)" + std::string(100000, '['), 0, "nested");
}

TEST(Safetensors, RefusesATensorThatStandsThereTwice) {
  const std::string t = R"("t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  expect_refused("{" + t + "," + t + "}", 1, "`t` is there twice");
  expect_refused(R"({"t":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1,
                 "`dtype` is there twice");
}

TEST(Safetensors, RefusesEntriesWithMissingOrForeignMembers) {
  expect_refused(R"({"t":7})", 0, "tensor `t`", "an object was expected, not `7`");
  expect_refused(R"({"t":{"shape":[1],"data_offsets":[0,1]}})", 1, "dtype is missing");
  expect_refused(R"({"t":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", 1, "dtype is `8`");
  expect_refused(R"({"t":{"dtype":"U8","data_offsets":[0,1]}})", 1, "shape is missing");
  expect_refused(entry("U8", "1", "[0,1]"), 1, "shape is `1`, not a list");
  expect_refused(entry("U8", "[1]", "7"), 1, "data_offsets is `7`");
  expect_refused(entry("U8", "[1]", "[0,1,2]"), 1, "data_offsets is `[0,1,2]`");
}

TEST(Safetensors, RefusesNumbersThatAreNoSizes) {
  expect_refused(entry("U8", "[-1]", "[0,1]"), 1, "tensor `t`: shape holds `-1`");
  expect_refused(entry("U8", "[1.0]", "[0,1]"), 1, "shape holds `1.0`");
  expect_refused(entry("U8", "[\"1\"]", "[0,1]"), 1, "shape holds");
  expect_refused(entry("U8", "[1]", "[-1,0]"), 1, "data_offsets holds `-1`");
  expect_refused(entry("U8", "[1]", "[1,0]"), 1, "run backwards");
  expect_refused(entry("U8", "[1]", "[18446744073709551615,18446744073709551615]"), 1,
                 "data_offsets holds `18446744073709551615`");
  expect_refused(entry("U8", "[1]", "[0,18446744073709551616]"), 1, "data_offsets holds");
}

TEST(Safetensors, RefusesProductsThatOverflow) {
  expect_refused(entry("F32", "[4294967296,4294967296]", "[0,0]"), 0, "larger than any memory");
  expect_refused(entry("BF16", "[9223372036854775807,2]", "[0,0]"), 0, "larger than any memory");
  // 16 * 2^60 bits wrap to zero.
  expect_refused(entry("BF16", "[1152921504606846976]", "[0,0]"), 0, "larger than any memory");
}

TEST(Safetensors, RefusesSizesThatDoNotMatchShapeAndType) {
  expect_refused(entry("BF16", "[2,2]", "[0,16]"), 16, "shape [2, 2] of BF16 needs 8 bytes",
                 "hold 16");
  expect_refused(entry("F32", "[2,2]", "[0,8]"), 8, "needs 16 bytes");
  expect_refused(entry("F4", "[3]", "[0,1]"), 1, "of F4");
}

TEST(Safetensors, RefusesRangesOutsideTheFileOverlappingOrWithHoles) {
  expect_refused(entry("U8", "[4]", "[1000,1004]"), 4, "truncated");
  expect_refused(entry("U8", "[0]", "[1000,1000]"), 0, "truncated");
  expect_refused(entry("U8", "[4]", "[1,5]"), 5, "tensor `t` starts at", "belong to no tensor");
  const std::string two = R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},)"
                          R"("b":{{"dtype":"U8","shape":[4],"data_offsets":[{},{}]}}}})";
  expect_refused(fmt::format(fmt::runtime(two), 3, 7), 7, "tensor `b` starts at",
                 "tensor `a` ends at");
  expect_refused(fmt::format(fmt::runtime(two), 3, 7), 7, "they overlap");
  expect_refused(fmt::format(fmt::runtime(two), 0, 4), 4, "they overlap");
  expect_refused(fmt::format(fmt::runtime(two), 6, 10), 10, "belong to no tensor");
}

TEST(Safetensors, RefusesHeaderLengthsBeyondTheFormatsLimit) {
  std::string file = safetensors_bytes("{}", "");
  file[4] = 1;  // + 2^32
  EXPECT_THAT([&] { parse_header(file); },
              ThrowsMessage<CheckpointError>(HasSubstr("a header of 4294967298 bytes")));
  file[7] = '\xff';
  EXPECT_THROW(parse_header(file), CheckpointError);
}

TEST(Safetensors, RecognisesAGitLfsPointer) {
  EXPECT_THAT(
      [] { parse_header("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"); },
      ThrowsMessage<CheckpointError>(HasSubstr("git lfs pull")));
}

TEST(Safetensors, KeepsMessagesShortAndInOneLine) {
  const std::string name = "a\\nb" + std::string(100000, 'x');
  try {
    parse_header(safetensors_bytes("{\"" + name + "\":7}", ""));
    FAIL();
  } catch (const CheckpointError& error) {
    EXPECT_LT(std::string(error.what()).size(), 400u);
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

class SafetensorsFileTest : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& bytes) {
    test::write_text(directory_.path() / "m.safetensors", bytes);
    return directory_.path() / "m.safetensors";
  }
  test::TemporaryDirectory directory_;
};

TEST_F(SafetensorsFileTest, ReadsExactlyTheRangeAskedFor) {
  const SafetensorsFile file(write(safetensors_bytes(entry("U8", "[6]", "[0,6]"), "abcdef")));
  const std::uint64_t begin = file.header().tensors.at("t").begin;
  std::string dst = "______";
  file.read(begin + 2, dst.data() + 1, 3);
  EXPECT_EQ(dst, "_cde__");
  file.read(begin, dst.data(), 0);
  EXPECT_EQ(dst, "_cde__");
}

TEST_F(SafetensorsFileTest, NamesPathAndOffsetWhenTheFileShrinksInUse) {
  const auto path = write(safetensors_bytes(entry("U8", "[6]", "[0,6]"), "abcdef"));
  const SafetensorsFile file(path);
  const std::uint64_t begin = file.header().tensors.at("t").begin;
  std::filesystem::resize_file(path, begin + 4);
  std::string dst(6, '_');
  EXPECT_THAT([&] { file.read(begin, dst.data(), 6); },
              ThrowsMessage<IoError>(AllOf(HasSubstr("m.safetensors"),
                                           HasSubstr(fmt::format("offset {}", begin + 4)),
                                           HasSubstr("2 bytes too early"))));
}

TEST_F(SafetensorsFileTest, TellsMissingFilesFromThoseThatAreNone) {
  EXPECT_THAT([&] { SafetensorsFile(directory_.path() / "none.safetensors"); },
              ThrowsMessage<CheckpointError>(HasSubstr("none.safetensors does not exist")));
  EXPECT_THAT([&] { SafetensorsFile{directory_.path()}; },
              ThrowsMessage<CheckpointError>(HasSubstr("is not a file")));
}

TEST_F(SafetensorsFileTest, HasTheStampOfTheMomentOfOpening) {
  const auto path = write(safetensors_bytes(entry("U8", "[6]", "[0,6]"), "abcdef"));
  const auto time = std::filesystem::last_write_time(path);
  const SafetensorsFile opened(path);
  const FileStamp before = opened.stamp();
  EXPECT_EQ(before.bytes, std::filesystem::file_size(path));
  EXPECT_EQ(SafetensorsFile(path).stamp(), before);
  // The clock of a file system may tick at 100 Hz: set mtime until a tick has gone by. It ends as
  // it was; ctime tells.
  while (SafetensorsFile(path).stamp() == before) std::filesystem::last_write_time(path, time);
  const FileStamp after = SafetensorsFile(path).stamp();
  EXPECT_EQ(after.mtime_ns, before.mtime_ns);
  EXPECT_GT(after.ctime_ns, before.ctime_ns);
  EXPECT_EQ(opened.stamp(), before);
}

}  // namespace
}  // namespace zi
