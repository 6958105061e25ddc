// `zero-infer pack`: the checkpoint that it writes is the one that it was made from, packed; and
// what is wrong with such a checkpoint is named.

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "base/file_descriptor.h"
#include "convert/pack_command.h"
#include "engine/open_model.h"
#include "offload/shard_reader.h"
#include "sanitized.h"
#include "temporary_directory.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;
namespace fs = std::filesystem;

const std::string kData = ZI_TEST_DATA;
const std::string kKjv = kData + "/bloom-kjv";
constexpr const char* kQkv = "transformer.h.1.self_attention.query_key_value.weight";

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// The header of a safetensors file.
json header_of(const fs::path& path) {
  const std::string bytes = read_file(path);
  std::uint64_t size = 0;
  std::memcpy(&size, bytes.data(), sizeof size);
  return json::parse(bytes.substr(8, size));
}

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

/// The message of what it throws.
std::string refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

RunConfig config_of(const std::string& model, WeightChoice blocks, WeightChoice head) {
  RunConfig config;
  config.model = model;
  config.weight_format = blocks;
  config.head_format = head;
  return config;
}

/// The shards of all units, of all ranks.
std::vector<std::vector<std::byte>> shards_of(const RunConfig& config, int world) {
  const OpenModel open = open_model(config);
  const ModelSpec& spec = open.model->spec();
  std::vector<std::vector<std::byte>> shards;
  const auto add = [&](const UnitSpec& unit, const WeightFormat& format) {
    const PartitionLayout layout(unit, format, world);
    for (int rank = 0; rank < world; ++rank) {
      std::vector<std::byte>& shard = shards.emplace_back(layout.shard_bytes());
      ShardReader(*open.source, layout, rank).read(0, shard);
    }
  };
  for (const UnitSpec& block : spec.blocks) add(block, open.block_format);
  add(spec.head, open.head_format);
  add({.name = "embedding", .matrices = {spec.embedding}, .vectors = {}}, open.head_format);
  return shards;
}

/// The vectors of the model, in float32.
std::vector<std::vector<float>> vectors_of(const std::string& model) {
  const OpenModel open = open_model(config_of(model, WeightChoice::kStored, WeightChoice::kStored));
  std::vector<std::vector<float>> all;
  const auto add = [&](const std::vector<TensorSpec>& vectors) {
    for (const TensorSpec& v : vectors) {
      std::vector<float>& values = all.emplace_back(static_cast<std::size_t>(v.elements()));
      open.source->read(v, 0, v.elements(), DType::kFloat32, values.data());
    }
  };
  add(open.model->spec().vectors);
  add(open.model->spec().head.vectors);
  for (const UnitSpec& block : open.model->spec().blocks) add(block.vectors);
  return all;
}

class Pack : public ::testing::Test {
 protected:
  fs::path root() const { return directory_.path(); }
  std::string out() const { return (root() / "packed").string(); }
  /// Packs to out().
  int pack(const std::string& model, WeightChoice blocks = WeightChoice::kInt4,
           WeightChoice head = WeightChoice::kInt8, std::uint64_t file_bytes = kPackedFileBytes,
           const std::function<int()>& stop = {}) const {
    return pack_checkpoint({.model = model,
                            .output = out(),
                            .weight_format = blocks,
                            .head_format = head,
                            .quiet = true},
                           stop, file_bytes);
  }
  /// What a run says that gives no format.
  std::string refusal_of_run() const {
    return refusal([&] { shards_of(stored(), 1); });
  }
  RunConfig stored() const {
    return config_of(out(), WeightChoice::kStored, WeightChoice::kStored);
  }
  /// Changes the only file's header, whose length must not grow.
  void edit_header(const std::function<void(json&)>& edit) const {
    const fs::path path = fs::path(out()) / "model.safetensors";
    std::string bytes = read_file(path);
    std::uint64_t size = 0;
    std::memcpy(&size, bytes.data(), sizeof size);
    json header = json::parse(bytes.substr(8, size));
    edit(header);
    std::string text = header.dump();
    ASSERT_LE(text.size(), size);
    text.resize(size, ' ');
    write_file(path, bytes.replace(8, size, text));
  }
  /// Gives a tensor of the only file another name.
  void rename(const std::string& from, const std::string& to) const {
    edit_header([&](json& header) {
      header[to] = header.at(from);
      header.erase(from);
    });
  }

  test::TemporaryDirectory directory_;
};

TEST_F(Pack, HoldsTheRowsThatARunPacksWhileItLoadsForAnyWorld) {
  struct Case {
    std::string model;
    WeightChoice blocks, head;
    std::uint64_t file_bytes;
  };
  using enum WeightChoice;
  const std::string families = kData + "/families/";
  for (const Case& c : {Case{kKjv, kInt4, kInt8, kPackedFileBytes},
                        {kKjv, kInt8, kStored, 700'000},
                        {kKjv, kStored, kInt4, kPackedFileBytes},
                        {families + "llama-9x3x64-tied", kInt4, kInt4, 100'000},
                        {families + "qwen3-3x3x64", kInt8, kInt8, kPackedFileBytes},
                        {families + "opt-4x4x24-gelu-without-biases", kInt4, kStored, 50'000}}) {
    SCOPED_TRACE(c.model);
    fs::remove_all(out());
    ASSERT_EQ(pack(c.model, c.blocks, c.head, c.file_bytes), 0);
    // Under a sanitizer the world alone that cuts rows.
    for (const int world : {1, 3}) {
      if (test::kSanitized && world == 1) continue;
      EXPECT_EQ(shards_of(stored(), world), shards_of(config_of(c.model, c.blocks, c.head), world));
      // The formats may be said again.
      EXPECT_EQ(shards_of(config_of(out(), c.blocks, c.head), world), shards_of(stored(), world));
    }
    EXPECT_EQ(vectors_of(out()), vectors_of(c.model));
    const OpenModel packed = open_model(stored());
    EXPECT_EQ(packed.compute_dtype, open_model(config_of(c.model, kStored, kStored)).compute_dtype);
    EXPECT_THAT(packed.warnings, IsEmpty());
  }
}

TEST_F(Pack, WritesADocumentedCheckpointInOneFile) {
  ASSERT_EQ(pack(kKjv), 0);
  EXPECT_THAT(names_in(out()),
              ElementsAre("config.json", "generation_config.json", "model.safetensors",
                          "tokenizer.json", "tokenizer_config.json"));
  for (const char* copied : {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}) {
    EXPECT_EQ(read_file(out() + "/" + copied), read_file(kKjv + "/" + copied));
  }
  const json header = header_of(out() + "/model.safetensors");
  EXPECT_EQ(header.at("__metadata__"),
            (json{{"zero_infer.rows", "1"}, {"zero_infer.elements", "bfloat16"}}));
  const json& qkv = header.at(std::string(kQkv) + ".int4g16f8");
  EXPECT_EQ(qkv.at("dtype"), "U8");
  EXPECT_EQ(qkv.at("shape"), json({960, 160 + 32}));
  EXPECT_TRUE(header.contains("transformer.word_embeddings.weight.int8g32f8"));
  EXPECT_EQ(header.at("transformer.h.1.input_layernorm.weight").at("dtype"), "BF16");
  json config = json::parse(read_file(out() + "/config.json"));
  EXPECT_EQ(config.at("quantization_config"), (json{{"quant_method", "zero-infer"},
                                                    {"version", 1},
                                                    {"weight_format", "int4g16f8"},
                                                    {"head_format", "int8g32f8"}}));
  config.erase("quantization_config");
  EXPECT_EQ(config, json::parse(read_file(kKjv + "/config.json")));
  EXPECT_THAT(names_in(root()), ElementsAre("packed"));
}

TEST_F(Pack, WritesSeveralFilesWithAnIndexWhereOneWouldBeTooLarge) {
  ASSERT_EQ(pack(kKjv, WeightChoice::kInt4, WeightChoice::kInt4, 700'000), 0);
  const json index = json::parse(read_file(out() + "/model.safetensors.index.json"));
  std::set<std::string> files;
  std::size_t bytes = 0;
  for (const auto& [tensor, file] : index.at("weight_map").items()) {
    files.insert(file.get<std::string>());
    const json entry = header_of(fs::path(out()) / file.get<std::string>()).at(tensor);
    bytes += entry.at("data_offsets")[1].get<std::size_t>() -
             entry.at("data_offsets")[0].get<std::size_t>();
  }
  EXPECT_EQ(index.at("metadata").at("total_size"), bytes);
  EXPECT_GE(files.size(), 6u);
  EXPECT_LE(files.size(), 12u);
  for (const std::string& name : names_in(out())) {
    EXPECT_EQ(name.ends_with(".safetensors"), files.contains(name)) << name;
  }
  EXPECT_TRUE(files.contains(fmt::format("model-00001-of-{:05}.safetensors", files.size())));
}

TEST_F(Pack, OfAPackedCheckpointIsTheSameAndOtherFormatsAreRefused) {
  ASSERT_EQ(pack(kKjv), 0);
  const std::string again = (root() / "again").string();
  ASSERT_EQ(pack_checkpoint({.model = out(),
                             .output = again,
                             .weight_format = WeightChoice::kInt4,
                             .head_format = WeightChoice::kStored,
                             .quiet = true},
                            {}),
            0);
  for (const std::string& name : names_in(out())) {
    EXPECT_EQ(read_file(again + "/" + name), read_file(out() + "/" + name)) << name;
  }
  using enum WeightChoice;
  EXPECT_THAT(refusal([&] { open_model(config_of(out(), kInt8, kStored)); }),
              AllOf(HasSubstr(out()), HasSubstr("the blocks are stored in int4 in groups of 16"),
                    HasSubstr("--weight-format asks for int8 in groups of 32")));
  EXPECT_THAT(refusal([&] { open_model(config_of(out(), kStored, kInt4)); }),
              HasSubstr("head and embedding are stored in int8"));
}

TEST_F(Pack, ADamagedOneIsRefusedByName) {
  const std::string qkv = std::string(kQkv) + ".int4g16f8";
  pack(kKjv, WeightChoice::kInt4, WeightChoice::kStored);
  const fs::path good = root() / "good";
  fs::rename(out(), good);
  const auto damaged = [&](const std::function<void()>& damage) {
    fs::remove_all(out());
    fs::copy(good, out());
    damage();
    return refusal_of_run();
  };
  EXPECT_EQ(damaged([] {}), "nothing was thrown");
  // A tensor that is missing, in another format, in none that is known.
  EXPECT_THAT(damaged([&] { rename(qkv, "x.weight.int4g16f8"); }),
              HasSubstr("has no tensor `h.1."));
  EXPECT_THAT(damaged([&] { rename(qkv, std::string(kQkv) + ".int8g32f8"); }),
              AllOf(HasSubstr("is stored in int4 in groups of 16, `h.1.self_attention"),
                    HasSubstr("int8 in groups of 32: the blocks have one format")));
  EXPECT_THAT(damaged([&] { rename(qkv, std::string(kQkv) + ".int4g16f9"); }),
              AllOf(HasSubstr("query_key_value.weight.int4g16f9"),
                    HasSubstr("a format that this version does not know")));
  // All of another format than config.json says.
  EXPECT_THAT(damaged([&] {
                write_file(out() + "/config.json", [&] {
                  json config = json::parse(read_file(out() + "/config.json"));
                  config["quantization_config"]["weight_format"] = "int8g32f8";
                  return config.dump();
                }());
              }),
              AllOf(HasSubstr("`quantization_config.weight_format`"), HasSubstr("int8g32f8")));
  EXPECT_EQ(damaged([&] {
              fs::copy_file(kKjv + "/config.json", out() + "/config.json",
                            fs::copy_options::overwrite_existing);
            }),
            "nothing was thrown");
  // Rows of another length.
  EXPECT_THAT(damaged([&] {
                edit_header([&](json& header) { header[qkv]["shape"] = {960 * 2, 96}; });
              }),
              AllOf(HasSubstr("`h.1.self_attention.query_key_value.weight.int4g16f8`"),
                    HasSubstr("has the shape [1920, 96]"), HasSubstr("are [960, 192]")));
  // What the file says of its rows.
  EXPECT_THAT(
      damaged([&] { edit_header([](json& h) { h["__metadata__"]["zero_infer.rows"] = "3"; }); }),
      HasSubstr("its packed rows are of version `3`"));
  EXPECT_THAT(damaged([&] { edit_header([](json& h) { h.erase("__metadata__"); }); }),
              HasSubstr("its packed rows are of version none"));
  EXPECT_THAT(damaged([&] {
                edit_header([](json& h) { h["__metadata__"]["zero_infer.elements"] = "int8"; });
              }),
              HasSubstr("`zero_infer.elements` of __metadata__ is `int8`"));
  // A scale with exponent 0.
  EXPECT_THAT(damaged([&] {
                const fs::path path = out() + "/model.safetensors";
                std::string bytes = read_file(path);
                std::uint64_t size = 0;
                std::memcpy(&size, bytes.data(), sizeof size);
                const auto begin = header_of(path).at(qkv).at("data_offsets")[0].get<std::size_t>();
                bytes[8 + size + begin + 77 * 192 + 160 + 3] = 5;
                write_file(path, bytes);
              }),
              AllOf(HasSubstr("packed/model.safetensors: tensor "
                              "`h.1.self_attention.query_key_value.weight.int4g16f8`: row 77"),
                    HasSubstr("has a scale or a code that is none")));
  // Cut short.
  EXPECT_THAT(damaged([&] {
                const fs::path path = out() + "/model.safetensors";
                fs::resize_file(path, fs::file_size(path) - 1);
              }),
              HasSubstr("truncated"));
  // Both packed and not.
  EXPECT_THAT(damaged([&] { rename("transformer.h.1.input_layernorm.bias", kQkv); }),
              AllOf(HasSubstr(kQkv), HasSubstr("is there twice")));
}

TEST_F(Pack, RefusesAPlaceThatIsTaken) {
  fs::create_directory(out());
  write_file(out() + "/mine", "text");
  EXPECT_THAT(refusal([&] { pack(kKjv); }), HasSubstr("is there and not an empty directory"));
  EXPECT_THAT(names_in(root()), ElementsAre("packed"));
  fs::remove(out() + "/mine");
  EXPECT_EQ(pack(kKjv), 0);  // it is empty
  const std::string missing = (root() / "no" / "where").string();
  EXPECT_THAT(refusal([&] {
                pack_checkpoint(
                    {.model = kKjv, .output = missing, .weight_format = WeightChoice::kInt4}, {});
              }),
              AllOf(HasSubstr(missing), HasSubstr("No such file or directory")));
}

TEST_F(Pack, RemovesWhatAKilledWriterLeftAndNothingElse) {
  const fs::path partial = out() + ".partial";
  fs::create_directory(partial);
  write_file(partial / "mine", "text");
  EXPECT_THAT(refusal([&] { pack(kKjv); }), HasSubstr("no zero-infer has made it"));
  EXPECT_EQ(read_file(partial / "mine"), "text");
  write_file(partial / ".zero-infer-writes-here", "");
  {
    const FileDescriptor other(::open(partial.c_str(), O_RDONLY | O_DIRECTORY));
    ASSERT_EQ(::flock(other.get(), LOCK_EX | LOCK_NB), 0);
    EXPECT_THAT(refusal([&] { pack(kKjv); }), HasSubstr("is being written by another process"));
    EXPECT_EQ(read_file(partial / "mine"), "text");
  }
  EXPECT_EQ(pack(kKjv), 0);
  EXPECT_THAT(names_in(root()), ElementsAre("packed"));
  EXPECT_EQ(names_in(out()).size(), 5u);
}

TEST_F(Pack, LeavesNothingWhenItIsStoppedOrFails) {
  int asked = 0;
  EXPECT_EQ(pack(kKjv, WeightChoice::kInt4, WeightChoice::kInt4, 700'000,
                 [&asked] { return ++asked == 7 ? SIGTERM : 0; }),
            SIGTERM);
  EXPECT_THAT(names_in(root()), IsEmpty());

  // A value that cannot be packed.
  const fs::path spoilt = root() / "model";
  fs::copy(kKjv, spoilt);
  for (const auto& entry : fs::directory_iterator(spoilt)) {
    if (entry.path().extension() != ".safetensors") continue;
    const json header = header_of(entry.path());
    if (!header.contains(kQkv)) continue;
    std::string bytes = read_file(entry.path());
    std::uint64_t size = 0;
    std::memcpy(&size, bytes.data(), sizeof size);
    const auto begin = header.at(kQkv).at("data_offsets")[0].get<std::size_t>();
    const std::uint16_t nan = 0x7fc0;
    std::memcpy(bytes.data() + 8 + size + begin + (500 * 320 + 11) * 2, &nan, 2);
    write_file(entry.path(), bytes);
  }
  EXPECT_THAT(refusal([&] { pack(spoilt.string()); }),
              HasSubstr("tensor `h.1.self_attention.query_key_value.weight`: row 500"));
  EXPECT_THAT(names_in(root()), ElementsAre("model"));

  // A disk without room, as far as a limit on files' sizes is like one.
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{1'000'000, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = refusal([&] { pack(kKjv); });
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_THAT(message, AllOf(HasSubstr("model.safetensors"), HasSubstr("File too large")));
  EXPECT_THAT(names_in(root()), ElementsAre("model"));
}

TEST_F(Pack, CopiesTemplatesAndLicensesAndNoOtherWeights) {
  const fs::path model = root() / "model";
  fs::copy(kKjv, model);
  fs::create_directory(model / "additional_chat_templates");
  write_file(model / "additional_chat_templates" / "tool_use.jinja", "tools");
  write_file(model / "chat_template.jinja", "template");
  write_file(model / "LICENSE", "license");
  write_file(model / "pytorch_model.bin", "pickle");
  write_file(model / "notes.txt", "mine");
  write_file(model / "adapter_config.json", "{}");
  ASSERT_EQ(pack(model.string()), 0);
  EXPECT_THAT(names_in(out()),
              UnorderedElementsAre("config.json", "generation_config.json", "model.safetensors",
                                   "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                                   "LICENSE", "additional_chat_templates"));
  EXPECT_EQ(read_file(out() + "/additional_chat_templates/tool_use.jinja"), "tools");
}

TEST_F(Pack, WithoutWeightsAPlanTakesTheFormatsOfItsConfig) {
  ASSERT_EQ(pack(kKjv), 0);
  fs::remove(out() + "/model.safetensors");
  const OpenModel open = open_model(stored(), MissingWeights::kAssume);
  EXPECT_EQ(open.block_format, kInt4Weights);
  EXPECT_EQ(open.head_format, kInt8Weights);
}

}  // namespace
}  // namespace zi
