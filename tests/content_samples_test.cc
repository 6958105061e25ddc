#include "checkpoint/content_samples.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "synthetic_checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(SampleOffsets, AreTheEndsAndOnePlaceInEachPartBetween) {
  for (const std::uint64_t bytes : {131073ull, 131072ull * 3 + 1, 822083584ull, 1ull << 50}) {
    const auto offsets = sample_offsets("h.3.mlp.dense_h_to_4h.weight", bytes, kMostSamples);
    ASSERT_EQ(offsets.size(), kMostSamples);
    EXPECT_EQ(offsets.front(), 0u);
    EXPECT_EQ(offsets.back(), bytes - kSampleBytes);
    const std::uint64_t part = bytes / kMostSamples;
    for (std::size_t i = 1; i + 1 < offsets.size(); ++i) {
      EXPECT_GE(offsets[i], i * part);
      EXPECT_LE(offsets[i] + kSampleBytes, (i + 1) * part);
    }
  }
  EXPECT_EQ(sample_offsets("t", 10000, 2), (std::vector<std::uint64_t>{0, 10000 - kSampleBytes}));
}

TEST(SampleOffsets, DependOnTheNameAndTheLengthAlone) {
  const auto offsets = sample_offsets("a", 1 << 30, kMostSamples);
  EXPECT_EQ(sample_offsets("a", 1 << 30, kMostSamples), offsets);
  EXPECT_NE(sample_offsets("b", 1 << 30, kMostSamples), offsets);
  // Each layer's samples lie elsewhere, so that what repeats in all layers is seen in most.
  std::set<std::uint64_t> second;
  for (int layer = 0; layer < 70; ++layer) {
    second.insert(sample_offsets(fmt::format("h.{}.w", layer), 1 << 30, kMostSamples)[1]);
  }
  EXPECT_EQ(second.size(), 70u);
}

/// Rows [heads, 3, head_dim] of 28 KiB, as in BLOOM 176b: a change of q alone is in a third of
/// them.
TEST(SampleOffsets, HitTheRowsOfQInEachOf70Layers) {
  constexpr std::uint64_t kRow = 14336 * 2;
  constexpr std::uint64_t kHead = 128 * kRow;
  for (int layer = 0; layer < 70; ++layer) {
    const auto offsets =
        sample_offsets(fmt::format("transformer.h.{}.self_attention.query_key_value.weight", layer),
                       112 * 3 * kHead, kMostSamples);
    int q = 0;
    for (const std::uint64_t offset : offsets) q += offset / kHead % 3 == 0 ? 1 : 0;
    EXPECT_GE(q, 2) << layer;
  }
}

class SampledContent : public ::testing::Test {
 protected:
  struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;
    std::string data;
  };

  /// A file of U8 tensors in this order.
  std::filesystem::path write(const std::vector<Tensor>& tensors,
                              const char* name = "m.safetensors") {
    std::string header;
    std::string data;
    for (const Tensor& t : tensors) {
      header += fmt::format(R"({}"{}":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}})",
                            header.empty() ? "{" : ",", t.name, fmt::join(t.shape, ","),
                            data.size(), data.size() + t.data.size());
      data += t.data;
    }
    const auto path = directory_.path() / name;
    test::write_text(path, test::safetensors_bytes(header + "}", data));
    return path;
  }
  static std::vector<TensorInFile> tensors_of(const SafetensorsFile& file) {
    std::vector<TensorInFile> tensors;
    for (const auto& [name, tensor] : file.header().tensors) {
      tensors.push_back({name, &file, &tensor});
    }
    return tensors;
  }
  std::uint64_t hash(const std::vector<Tensor>& tensors, int threads = 3) {
    const SafetensorsFile file(write(tensors));
    return sampled_content(tensors_of(file), threads);
  }
  static std::string noise(std::size_t bytes, int seed) {
    std::string text(bytes, '\0');
    for (std::size_t i = 0; i < bytes; ++i) {
      text[i] = static_cast<char>((i * 2654435761u + static_cast<unsigned>(seed) * 97) >> 11);
    }
    return text;
  }

  test::TemporaryDirectory directory_;
  const std::vector<Tensor> base_ = {{"big", {400, 1000}, noise(400'000, 1)},
                                     {"empty", {0}, ""},
                                     {"small", {5000}, noise(5000, 2)}};
};

TEST_F(SampledContent, DoesNotDependOnThreadsOrderPlaceOrFiles) {
  const std::uint64_t expected = hash(base_, 1);
  for (int threads : {2, 16, 40}) EXPECT_EQ(hash(base_, threads), expected) << threads;
  auto turned = base_;
  std::ranges::reverse(turned);
  EXPECT_EQ(hash(turned), expected);
  const SafetensorsFile first(write({base_[0]}, "one.safetensors"));
  const SafetensorsFile second(write({base_[2], base_[1]}, "two.safetensors"));
  auto spread = tensors_of(second);
  for (const TensorInFile& t : tensors_of(first)) spread.push_back(t);
  EXPECT_EQ(sampled_content(spread, 4), expected);
}

TEST_F(SampledContent, SeesNamesTypesShapesAndEveryByteThatIsSampled) {
  const std::uint64_t expected = hash(base_);
  const auto changed = [&](std::size_t tensor, const auto& change) {
    auto copy = base_;
    change(copy[tensor]);
    return hash(copy);
  };
  EXPECT_NE(changed(0, [](Tensor& t) { t.name = "bog"; }), expected);
  EXPECT_NE(changed(0, [](Tensor& t) { t.shape = {1000, 400}; }), expected);
  EXPECT_NE(changed(1, [](Tensor& t) { t.shape = {0, 2}; }), expected);
  EXPECT_NE(changed(0, [](Tensor& t) { t.data.front() ^= 1; }), expected);
  EXPECT_NE(changed(0, [](Tensor& t) { t.data.back() ^= 1; }), expected);
  for (const std::uint64_t offset : sample_offsets("big", 400'000, kMostSamples)) {
    EXPECT_NE(changed(0, [&](Tensor& t) { t.data[offset + 4095] ^= 1; }), expected) << offset;
  }
  // A small tensor is read whole.
  for (std::size_t i = 0; i < 5000; i += 499) {
    EXPECT_NE(changed(2, [&](Tensor& t) { t.data[i] ^= 1; }), expected) << i;
  }
  // Two tensors that change places.
  auto swapped = base_;
  swapped.push_back({"other", {5000}, noise(5000, 3)});
  const std::uint64_t before = hash(swapped);
  std::swap(swapped[2].data, swapped[3].data);
  EXPECT_NE(hash(swapped), before);
}

/// Bytes that this process has asked of files with read and pread, and calls that did.
std::pair<std::size_t, std::size_t> asked() {
  std::ifstream in("/proc/self/io");
  std::pair<std::size_t, std::size_t> out;
  std::string key;
  for (std::size_t value = 0; in >> key >> value;) {
    if (key == "rchar:") out.first = value;
    if (key == "syscr:") out.second = value;
  }
  return out;
}

TEST_F(SampledContent, ReadsAFewPagesOfALargeTensor) {
  constexpr std::int64_t kBytes = std::int64_t{16} << 20;
  const SafetensorsFile file(write({{"a", {kBytes}, std::string(kBytes, 'x')}}));
  const auto before = asked();
  (void)sampled_content(tensors_of(file), 3);
  const auto after = asked();
  constexpr std::size_t kOwn = 4096;  // of /proc/self/io itself
  EXPECT_GE(after.first - before.first, kMostSamples * kSampleBytes);
  EXPECT_LE(after.first - before.first, kMostSamples * kSampleBytes + kOwn);
  EXPECT_LE(after.second - before.second, kMostSamples + 8);
}

TEST(Samples, AreFewerOfEachWhereThereAreMany) {
  EXPECT_EQ(samples_of_each(0), kMostSamples);
  EXPECT_EQ(samples_of_each(845), kMostSamples);
  for (const std::size_t tensors : {1024u, 1025u, 4096u, 10000u, 16384u}) {
    EXPECT_LE(samples_of_each(tensors) * tensors, kSampleReads);
    EXPECT_GE(samples_of_each(tensors), kFewestSamples);
  }
  EXPECT_EQ(samples_of_each(1'000'000), kFewestSamples);
}

TEST_F(SampledContent, NamesPathAndOffsetWhenTheFileShrinksInUse) {
  const auto path = write(base_);
  const SafetensorsFile file(path);
  std::filesystem::resize_file(path, 200'000);
  for (int threads : {1, 8}) {
    EXPECT_THAT([&] { sampled_content(tensors_of(file), threads); },
                ThrowsMessage<IoError>(
                    AllOf(HasSubstr("m.safetensors"), HasSubstr("the file ends at offset"))));
  }
}

TEST_F(SampledContent, OfNothingIsAHashToo) {
  EXPECT_EQ(sampled_content({}, 4), sampled_content({}, 1));
}

}  // namespace
}  // namespace zi
