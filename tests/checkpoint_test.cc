#include "zero_infer/checkpoint.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint/content_samples.h"
#include "synthetic_checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;
using test::SyntheticOptions;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::ThrowsMessage;
namespace fs = std::filesystem;

constexpr const char* kKjv = ZI_TEST_DATA "/bloom-kjv";
constexpr const char* kPrefix = "transformer.";

std::vector<float> read_floats(const WeightSource& source, const TensorSpec& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  source.read(tensor, 0, tensor.elements(), DType::kFloat32, values.data());
  return values;
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() {
    test::write_text(
        config_json_,
        R"({"model_type":"bloom","n_embed":24,"n_head":3,"n_layer":2,"vocab_size":50})");
  }
  void generate(const SyntheticOptions& options) {
    fs::remove_all(root());
    test::write_synthetic_checkpoint(config_json_, root(), options);
  }
  fs::path root() const { return directory_.path() / "model"; }
  std::unique_ptr<WeightSource> open() const { return open_checkpoint(root(), kPrefix); }
  std::vector<TensorSpec> tensors() const { return test::bloom_tensors(ModelConfig::load(root())); }
  /// Makes the directory hold just one model.safetensors of these bytes.
  void write_single(const std::string& header, const std::string& data) {
    fs::remove_all(root());
    fs::create_directories(root());
    test::write_text(root() / "model.safetensors", test::safetensors_bytes(header, data));
  }
  void edit_index(const std::function<void(json&)>& edit) {
    const fs::path path = root() / "model.safetensors.index.json";
    json index = json::parse(read_file(path));
    edit(index);
    test::write_text(path, index.dump());
  }
  void expect_refused(const std::string& part, const std::string& other = "") {
    EXPECT_THAT([&] { open(); },
                ThrowsMessage<CheckpointError>(AllOf(HasSubstr(part), HasSubstr(other))));
  }

  test::TemporaryDirectory directory_;
  fs::path config_json_ = directory_.path() / "shape.json";
};

TEST_F(CheckpointTest, GivesEveryTensorOfTheBundledModelByteForByte) {
  struct File {
    std::string bytes;
    std::size_t data;
    json header;
  };
  std::vector<File> files;
  for (int i = 1; i <= 3; ++i) {
    File file{read_file(fmt::format("{}/model-{:05}-of-00003.safetensors", kKjv, i)), 0, {}};
    std::uint64_t length = 0;
    std::memcpy(&length, file.bytes.data(), 8);
    file.data = 8 + length;
    file.header = json::parse(file.bytes.substr(8, length));
    files.push_back(std::move(file));
  }
  const auto source = open_checkpoint(kKjv, kPrefix);
  for (const TensorSpec& tensor : test::bloom_tensors(ModelConfig::load(kKjv))) {
    ASSERT_TRUE(source->contains(tensor.name)) << tensor.name;
    EXPECT_EQ(source->stored_dtype(tensor.name), DType::kBFloat16);
    // The file's own bytes, by headers read independently of the code under test.
    std::string expected;
    for (const auto& [bytes, data, header] : files) {
      if (!header.contains(kPrefix + tensor.name)) continue;
      const json& offsets = header[kPrefix + tensor.name]["data_offsets"];
      const auto begin = offsets[0].get<std::size_t>();
      expected = bytes.substr(data + begin, offsets[1].get<std::size_t>() - begin);
    }
    std::string got(static_cast<std::size_t>(tensor.elements()) * 2, '\0');
    source->read(tensor, 0, tensor.elements(), DType::kBFloat16, got.data());
    ASSERT_TRUE(got == expected) << tensor.name;
  }
  EXPECT_FALSE(source->contains("lm_head.weight"));
}

TEST_F(CheckpointTest, ReadsAllTypesPrefixesAndFileLayouts) {
  const TensorSpec matrix{"h.1.mlp.dense_h_to_4h.weight", {96, 24}};
  for (DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    const auto expected = make_dummy_weights(3, dtype);
    for (const char* prefix : {kPrefix, ""}) {
      for (int shards : {0, 1, 3, 5}) {
        generate({.dtype = dtype,
                  .shards = std::max(1, shards),
                  .prefix = prefix,
                  .single = shards == 0,
                  .seed = 3,
                  .tokenizer = {}});
        EXPECT_EQ(fs::exists(root() / "model.safetensors"), shards == 0);
        const auto source = open();
        for (const TensorSpec& tensor : tensors()) {
          ASSERT_EQ(source->stored_dtype(tensor.name), dtype);
          ASSERT_EQ(read_floats(*source, tensor), read_floats(*expected, tensor)) << tensor.name;
        }
        EXPECT_EQ(read_floats(*source, matrix).size(), 96u * 24u);
      }
    }
  }
}

TEST_F(CheckpointTest, ReadsAnyRangeInAnyTypeAndNothingBeside) {
  // Larger than one piece of a converting read.
  const TensorSpec tensor{"t", {700, 600}};
  std::string data;
  for (int i = 0; i < 700 * 600; ++i) {
    const std::uint16_t bits = float_to_bfloat16(static_cast<float>(i % 251) - 125.0f);
    data.append(reinterpret_cast<const char*>(&bits), 2);
  }
  write_single(fmt::format(R"({{"t":{{"dtype":"BF16","shape":[700,600],"data_offsets":[0,{}]}}}})",
                           data.size()),
               data);
  const auto source = open();
  for (const auto& [first, count] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {0, 420000}, {1, 419998}, {419999, 1}, {420000, 0}, {77, 131072}, {600, 131073}}) {
    std::vector<float> wide(static_cast<std::size_t>(count) + 2, 1e9f);
    source->read(tensor, first, count, DType::kFloat32, wide.data() + 1);
    std::vector<std::uint16_t> half(static_cast<std::size_t>(count) + 2, 0x7777);
    source->read(tensor, first, count, DType::kFloat16, half.data() + 1);
    std::vector<std::uint16_t> same(static_cast<std::size_t>(count) + 2, 0x7777);
    source->read(tensor, first, count, DType::kBFloat16, same.data() + 1);
    for (std::int64_t i = 0; i < count; ++i) {
      const float expected = static_cast<float>((first + i) % 251) - 125.0f;
      const auto at = static_cast<std::size_t>(i) + 1;
      ASSERT_EQ(wide[at], expected) << first + i;
      ASSERT_EQ(float16_to_float(half[at]), expected);
      ASSERT_EQ(bfloat16_to_float(same[at]), expected);
    }
    EXPECT_EQ(wide.front(), 1e9f);
    EXPECT_EQ(wide.back(), 1e9f);
    EXPECT_EQ(half.back(), 0x7777);
    EXPECT_EQ(same.front(), 0x7777);
    EXPECT_EQ(same.back(), 0x7777);
  }
}

TEST_F(CheckpointTest, ManyThreadsMayReadAtOnce) {
  const auto source = open_checkpoint(kKjv, kPrefix);
  const TensorSpec tensor{"h.0.mlp.dense_h_to_4h.weight", {1280, 320}};
  const std::vector<float> expected = read_floats(*source, tensor);
  std::vector<int> equal(4, 0);
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < equal.size(); ++i) {
      threads.emplace_back([&, i] { equal[i] = read_floats(*source, tensor) == expected; });
    }
  }
  EXPECT_THAT(equal, Each(1));
}

TEST_F(CheckpointTest, NamesTensorsThatAreMissing) {
  generate({});
  const auto source = open();
  EXPECT_FALSE(source->contains("h.2.ln.weight"));
  const auto message = AllOf(HasSubstr(root().string()), HasSubstr("`h.2.ln.weight`"),
                             HasSubstr("(nor `transformer.h.2.ln.weight`)"));
  EXPECT_THAT([&] { source->stored_dtype("h.2.ln.weight"); },
              ThrowsMessage<CheckpointError>(message));
  EXPECT_THAT(
      [&] {
        read_floats(*source, {"h.2.ln.weight", {4}});
      },
      ThrowsMessage<CheckpointError>(message));
}

TEST_F(CheckpointTest, RefusesAnotherShapeWithBothShapes) {
  generate({});
  const auto source = open();
  EXPECT_THAT(
      [&] {
        read_floats(*source, {"h.0.self_attention.dense.weight", {24, 25}});
      },
      ThrowsMessage<CheckpointError>(AllOf(HasSubstr("`h.0.self_attention.dense.weight`"),
                                           HasSubstr("[24, 24]"), HasSubstr("[24, 25]"))));
}

TEST_F(CheckpointTest, RefusesRangesOutsideTheTensor) {
  generate({});
  const auto source = open();
  std::vector<float> dst(64);
  for (const auto& [first, count] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {-1, 1}, {0, -1}, {0, 25}, {24, 1}, {25, 0}}) {
    EXPECT_THROW(source->read({"ln_f.weight", {24}}, first, count, DType::kFloat32, dst.data()),
                 CheckpointError)
        << first << " " << count;
  }
}

TEST_F(CheckpointTest, RefusesForeignTypesOnlyWhenAskedForThem) {
  write_single(R"({"mask":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]},)"
               R"("w":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
               std::string(6, '\0'));
  const auto source = open();
  EXPECT_TRUE(source->contains("mask"));
  EXPECT_EQ(source->stored_dtype("w"), DType::kFloat32);
  const auto message =
      AllOf(HasSubstr("model.safetensors"), HasSubstr("`mask` is stored as `BOOL`"));
  EXPECT_THAT([&] { source->stored_dtype("mask"); }, ThrowsMessage<CheckpointError>(message));
  EXPECT_THAT(
      [&] {
        read_floats(*source, {"mask", {2}});
      },
      ThrowsMessage<CheckpointError>(message));
}

TEST_F(CheckpointTest, RefusesTruncatedOverlappingAndNanFiles) {
  generate({.shards = 2, .tokenizer = {}});
  const fs::path second = root() / "model-00002-of-00002.safetensors";
  fs::resize_file(second, fs::file_size(second) - 1);
  expect_refused(second.string(), "truncated: header promises");
  write_single(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
               R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
               "xxx");
  expect_refused("model.safetensors", "overlap");
  write_single(R"({"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}})", "xxxx");
  expect_refused("model.safetensors", "not valid JSON");
}

TEST_F(CheckpointTest, RefusesAnIndexThatDoesNotFitItsFiles) {
  generate({.shards = 2, .tokenizer = {}});
  edit_index([](json& index) {
    index["weight_map"]["transformer.ghost"] = "model-00001-of-00002.safetensors";
  });
  expect_refused("`transformer.ghost` is in `model-00001-of-00002.safetensors`",
                 "that file lacks it");
  edit_index([](json& index) { index["weight_map"]["transformer.ghost"] = "gone.safetensors"; });
  expect_refused("names the file `gone.safetensors`, which is not there");
  edit_index([](json& index) { index["weight_map"]["transformer.ghost"] = 7; });
  expect_refused("names no file for tensor `transformer.ghost`");
  edit_index([](json& index) { index.erase("weight_map"); });
  expect_refused("`weight_map` is missing");
  test::write_text(root() / "model.safetensors.index.json", "{\"weight_map\":");
  expect_refused("model.safetensors.index.json: not valid JSON");
}

TEST_F(CheckpointTest, RefusesFilesOutsideTheDirectory) {
  generate({.shards = 1, .tokenizer = {}});
  fs::copy_file(root() / "model-00001-of-00001.safetensors", directory_.path() / "x.safetensors");
  const std::string absolute = (directory_.path() / "x.safetensors").string();
  for (const std::string& name :
       {std::string("../x.safetensors"), absolute, std::string("a/../../x.safetensors"),
        std::string(""), std::string("."), std::string("sub/"),
        std::string("model-00001-of-00001.safetensors\0x", 34)}) {
    edit_index([&](json& index) { index["weight_map"]["transformer.ln_f.weight"] = name; });
    expect_refused("`transformer.ln_f.weight`", "only files inside the model's directory");
  }
}

TEST_F(CheckpointTest, RefusesPicklesAndSaysHowToConvertThem) {
  fs::create_directories(root());
  test::write_text(root() / "pytorch_model-00001-of-00002.bin", "x");
  test::write_text(root() / "pytorch_model-00002-of-00002.bin", "x");
  expect_refused("pytorch_model*.bin (2 files)", "safe_serialization=True");
}

TEST_F(CheckpointTest, SaysWhatADirectoryLacks) {
  expect_refused("model is not a directory");
  fs::create_directories(root());
  expect_refused("has no weights", "--load-format dummy");
  test::write_text(root() / "model-00001-of-00002.safetensors", "x");
  expect_refused("fetch the index too");
}

TEST_F(CheckpointTest, IdentityFollowsTheFilesAndNotTheirPlace) {
  generate({.shards = 2, .tokenizer = {}});
  const std::uint64_t before = open()->identity();
  const std::uint64_t content = open()->content_identity();
  EXPECT_EQ(open()->identity(), before);
  fs::rename(root(), directory_.path() / "moved");
  EXPECT_EQ(open_checkpoint(directory_.path() / "moved", kPrefix)->identity(), before);
  fs::rename(directory_.path() / "moved", root());
  const fs::path second = root() / "model-00002-of-00002.safetensors";
  fs::last_write_time(second, fs::last_write_time(second) + std::chrono::seconds(1));
  EXPECT_NE(open()->identity(), before);
  EXPECT_TRUE(same_content(open()->identity(), before));
  EXPECT_EQ(open()->content_identity(), content);
}

/// Overwrites bytes in place, sets mtime back, and returns when ctime has moved.
void replace(const fs::path& path, std::uint64_t offset, std::string_view bytes) {
  const auto time = fs::last_write_time(path);
  const auto size = fs::file_size(path);
  const FileStamp before = SafetensorsFile(path).stamp();
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  do {
    fs::last_write_time(path, time);
  } while (SafetensorsFile(path).stamp() == before);
  EXPECT_EQ(fs::file_size(path), size);
  EXPECT_EQ(SafetensorsFile(path).stamp().mtime_ns, before.mtime_ns);
}

TEST_F(CheckpointTest, IdentitySeesOtherValuesOfOneMatrixUnderTheSameSizeAndMtime) {
  generate({.single = true, .tokenizer = {}});
  const fs::path path = root() / "model.safetensors";
  const std::uint64_t before = open()->identity();
  const std::uint64_t content = open()->content_identity();
  const StoredTensor tensor =
      SafetensorsFile(path).header().tensors.at("transformer.h.1.self_attention.dense.weight");
  std::string bytes = read_file(path).substr(tensor.begin, tensor.end - tensor.begin);
  const std::string old = bytes;
  for (std::size_t i = 0; i < bytes.size(); i += 2) bytes[i] ^= 1;  // each value's last bit
  replace(path, tensor.begin, bytes);
  EXPECT_NE(open()->content_identity(), content);
  EXPECT_FALSE(same_content(open()->identity(), before));
  replace(path, tensor.begin, old);
  EXPECT_EQ(open()->content_identity(), content);
}

TEST_F(CheckpointTest, IdentitySeesByCtimeWhatNoSampleTouches) {
  // One matrix of 4 MiB, of which 128 KiB are sampled; a byte between two samples changes.
  const std::string name = "transformer.h.0.mlp.dense_h_to_4h.weight";
  constexpr std::uint64_t kBytes = std::uint64_t{4} << 20;
  write_single(fmt::format(R"({{"{}":{{"dtype":"U8","shape":[{}],"data_offsets":[0,{}]}}}})", name,
                           kBytes, kBytes),
               std::string(kBytes, '\0'));
  const std::uint64_t before = open()->identity();
  const std::uint64_t content = open()->content_identity();
  const fs::path path = root() / "model.safetensors";
  const std::uint64_t begin = SafetensorsFile(path).header().tensors.at(name).begin;
  const auto offsets = sample_offsets(name, kBytes, kMostSamples);
  std::size_t i = 0;
  while (offsets[i + 1] <= offsets[i] + kSampleBytes) ++i;
  replace(path, begin + offsets[i] + kSampleBytes, "x");
  EXPECT_EQ(open()->content_identity(), content);
  EXPECT_NE(open()->identity(), before);
  EXPECT_TRUE(same_content(open()->identity(), before));
}

TEST_F(CheckpointTest, ContentIdentityIsOfTheWeightsHoweverTheyAreStored) {
  generate({.shards = 3, .seed = 4, .tokenizer = {}});
  const std::uint64_t content = open()->content_identity();
  generate({.single = true, .seed = 4, .tokenizer = {}});
  EXPECT_EQ(open()->content_identity(), content);
  generate({.single = true, .seed = 5, .tokenizer = {}});
  EXPECT_NE(open()->content_identity(), content);
  generate({.dtype = DType::kFloat16, .single = true, .seed = 4, .tokenizer = {}});
  EXPECT_NE(open()->content_identity(), content);
}

/// It stands in the names of folders of shard files: a change of it makes everyone write those
/// anew, and should be meant (kVersion in content_samples.cc).
TEST_F(CheckpointTest, ContentIdentityOfTheBundledModelStaysWhatItIs) {
  EXPECT_EQ(open_checkpoint(kKjv, kPrefix)->content_identity(), 0x549750f7da1e54abu);
}

TEST_F(CheckpointTest, TakesTheSingleFileBeforeAnIndexAndSaysSo) {
  generate({.shards = 2, .seed = 1, .tokenizer = {}});
  EXPECT_THAT(open()->warnings(), IsEmpty());
  const TensorSpec tensor{"h.1.self_attention.dense.weight", {24, 24}};
  const std::vector<float> indexed = read_floats(*open(), tensor);
  test::write_synthetic_checkpoint(config_json_, root(),
                                   {.single = true, .seed = 2, .tokenizer = {}});
  EXPECT_THAT(open()->warnings(),
              ElementsAre(AllOf(HasSubstr(root().string()), HasSubstr("model.safetensors is used"),
                                HasSubstr("model.safetensors.index.json"))));
  const std::vector<float> both = read_floats(*open(), tensor);
  EXPECT_NE(both, indexed);
  fs::remove(root() / "model.safetensors.index.json");
  EXPECT_EQ(read_floats(*open(), tensor), both);
  EXPECT_THAT(open()->warnings(), IsEmpty());
}

TEST_F(CheckpointTest, TakesTheIndexWhereTheSingleFileIsALinkToNothing) {
  generate({.shards = 2, .tokenizer = {}});
  fs::create_symlink("../gone", root() / "model.safetensors");
  EXPECT_TRUE(open()->contains("ln_f.weight"));
  EXPECT_THAT(open()->warnings(), IsEmpty());
}

TEST_F(CheckpointTest, SaysWhenTheFilesHoldTensorsThatTheIndexDoesNotName) {
  generate({.shards = 2, .tokenizer = {}});
  edit_index([](json& index) { index["weight_map"].erase("transformer.ln_f.bias"); });
  EXPECT_THAT(open()->warnings(), ElementsAre(AllOf(HasSubstr("hold 1 tensors"),
                                                    HasSubstr("`transformer.ln_f.bias`"))));
  EXPECT_FALSE(open()->contains("ln_f.bias"));
}

TEST_F(CheckpointTest, ListsTheNamesAsStored) {
  generate({.shards = 2, .tokenizer = {}});
  EXPECT_EQ(open()->names().size(), tensors().size());
  EXPECT_THAT(open()->names(), Contains("transformer.h.0.input_layernorm.bias"));
}

TEST_F(CheckpointTest, FollowsTheLinksOfAHubCache) {
  generate({.single = true, .tokenizer = {}});
  fs::rename(root() / "model.safetensors", directory_.path() / "blob");
  fs::create_symlink("../blob", root() / "model.safetensors");
  EXPECT_TRUE(open()->contains("ln_f.weight"));
}

}  // namespace
}  // namespace zi
