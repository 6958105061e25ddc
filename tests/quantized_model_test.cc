// Models whose matrices other programs have quantized, up to what a run, a plan and `zero-infer
// pack` make of them; and that a damaged one is refused, whatever is damaged.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "convert/pack_command.h"
#include "engine/open_model.h"
#include "offload/shard_reader.h"
#include "packing/valid_rows.h"
#include "quantized_checkpoint.h"
#include "synthetic_checkpoint.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using enum WeightChoice;
namespace fs = std::filesystem;

const std::string kQuantized = ZI_TEST_DATA "/quantized/";

struct Model {
  const char* name;
  const char* format;
  DType elements;
};
constexpr Model kModels[] = {{"gptq-g32", "int4g32f16z", DType::kFloat16},
                             {"gptq-v2-rows-sym", "int4f16", DType::kFloat16},
                             {"gptq-8bit-g64", "int8g64f16z", DType::kBFloat16},
                             {"gptq-sym-g128", "int4g128f16", DType::kFloat16},
                             {"awq-g64", "int4g64f16z", DType::kFloat16},
                             {"ct-w4a16-g128", "int4g128bf16", DType::kBFloat16},
                             {"ct-w4a16-g32-asym", "int4g32bf16z", DType::kBFloat16},
                             {"ct-w8a16-rows", "int8bf16", DType::kBFloat16},
                             {"ct-w8a8-rows-asym", "int8bf16z", DType::kBFloat16},
                             {"ct-float8-rows", "float8bf16", DType::kBFloat16},
                             {"fp8-blocks", "float8g128f32", DType::kBFloat16},
                             {"fp8-tensor", "float8f32", DType::kBFloat16}};

std::string read_all(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

RunConfig config_for(const std::string& model, WeightChoice blocks = kStored,
                     WeightChoice head = kAuto) {
  RunConfig config;
  config.model = model;
  config.weight_format = blocks;
  config.head_format = head;
  return config;
}

/// As a run on the CPU opens it.
OpenModel open_for_cpu(const RunConfig& config) {
  return open_model(config, MissingWeights::kRefuse, ProductsOf::kCpu);
}

/// The shards of all units of all ranks.
std::vector<std::vector<std::byte>> all_shards(const OpenModel& open, int world) {
  std::vector<std::vector<std::byte>> shards;
  const auto add = [&](const UnitSpec& unit, const MatrixFormats& formats) {
    const PartitionLayout layout(unit, formats, world);
    for (int rank = 0; rank < world; ++rank) {
      std::vector<std::byte>& shard = shards.emplace_back(layout.shard_bytes());
      ShardReader(*open.source, layout, rank).read(0, shard);
    }
  };
  for (const UnitSpec& block : open.model->spec().blocks) add(block, open.block_formats());
  add(open.model->spec().head, open.head_format);
  return shards;
}

std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
    return error.what();
  }
  return "nothing was refused";
}

struct QuantizedModel : ::testing::Test {
  fs::path root() const { return directory.path(); }
  /// A copy of a model, to be changed.
  std::string copy_of(const std::string& name) const {
    const std::string to = (root() / name).string();
    fs::copy(kQuantized + name, to);
    return to;
  }
  static void edit_config(const std::string& model, const std::function<void(json&)>& edit) {
    json config = json::parse(read_all(model + "/config.json"));
    edit(config);
    test::write_text(model + "/config.json", config.dump());
  }
  test::TemporaryDirectory directory;
};

TEST_F(QuantizedModel, IsMultipliedInBFloat16OnACpuUnlessTheConfigSaysOtherwise) {
  for (const Model& model : kModels) {
    SCOPED_TRACE(model.name);
    RunConfig config = config_for(kQuantized + model.name);
    EXPECT_EQ(open_for_cpu(config).compute_dtype, DType::kBFloat16);
    config.compute_dtype = DType::kFloat16;
    EXPECT_EQ(open_for_cpu(config).compute_dtype, DType::kFloat16);
  }
}

TEST_F(QuantizedModel, RestsInTheFormatOfItsCheckpointAndTheHeadInElements) {
  for (const Model& model : kModels) {
    SCOPED_TRACE(model.name);
    const OpenModel open = open_model(config_for(kQuantized + model.name));
    EXPECT_EQ(name_of(open.block_format), model.format);
    EXPECT_EQ(open.head_format, WeightFormat(model.elements));
    EXPECT_EQ(open.compute_dtype, model.elements);
    const std::string name = model.name;
    const bool inputs_too =
        name.starts_with("fp8") || name == "ct-w8a8-rows-asym" || name == "ct-float8-rows";
    EXPECT_EQ(open.warnings.size(), inputs_too ? 1u : 0u);
    if (inputs_too) {
      EXPECT_THAT(open.warnings[0], HasSubstr("the inputs of products stay in 16 bits"));
    }
  }
}

TEST_F(QuantizedModel, IsNotQuantizedAgainButItsHeadMayBe) {
  for (const Model& model : kModels) {
    const std::string path = kQuantized + model.name;
    for (const WeightChoice choice : {kInt4, kInt8}) {
      EXPECT_THAT(message_of([&] { open_model(config_for(path, choice)); }),
                  AllOf(HasSubstr(path), HasSubstr("the blocks are stored in"),
                        HasSubstr(model.format), HasSubstr("--weight-format asks for")));
    }
    const OpenModel open = open_model(config_for(path, kStored, kInt8));
    EXPECT_EQ(open.head_format, kInt8Weights);
    EXPECT_EQ(name_of(open.block_format), model.format);
  }
}

TEST_F(QuantizedModel, APlanTakesTheFormatFromItsConfigAlone) {
  for (const Model& model : kModels) {
    SCOPED_TRACE(model.name);
    const std::string path = copy_of(model.name);
    fs::remove(path + "/model.safetensors");
    const OpenModel open = open_model(config_for(path), MissingWeights::kAssume);
    EXPECT_TRUE(open.assumed);
    const WeightFormat stored = packed_format_named(model.format).value();
    EXPECT_EQ(open.block_format.kind, stored.kind);
    EXPECT_EQ(open.block_format.group, stored.group);
    EXPECT_EQ(open.block_format.zeros, stored.zeros);
    EXPECT_THAT(message_of([&] { open_model(config_for(path, kInt4), MissingWeights::kAssume); }),
                AllOf(HasSubstr(path + "/config.json: "), HasSubstr("--weight-format asks for")));
    // What a run would say of the config.
    const auto of_files = open_model(config_for(kQuantized + model.name)).warnings;
    EXPECT_EQ(open.warnings.size(), of_files.size());
    // Random weights are packed so.
    RunConfig dummy = config_for(path);
    dummy.load_format = LoadFormat::kDummy;
    const OpenModel random = open_model(dummy);
    EXPECT_EQ(random.block_format, open.block_format);
    const UnitSpec& block = random.model->spec().blocks.front();
    const PartitionLayout layout(block, random.block_format, 1);
    std::vector<std::byte> shard(layout.shard_bytes());
    ShardReader(*random.source, layout, 0).read(0, shard);
    const auto& matrix = layout.matrices().front();
    const std::int64_t rows = matrix.tensor.shape[0], cols = matrix.tensor.shape[1];
    EXPECT_EQ(valid_rows(shard.data(), rows, cols, random.block_format), rows);
  }
}

TEST_F(QuantizedModel, APlanFromItsConfigAloneSaysThatColumnsMayBeInAnotherOrder) {
  const std::string path = copy_of("gptq-g32");
  fs::remove(path + "/model.safetensors");
  edit_config(path, [](json& c) { c["quantization_config"]["desc_act"] = true; });
  EXPECT_THAT(open_model(config_for(path), MissingWeights::kAssume).warnings,
              ElementsAre(AllOf(HasSubstr("desc_act"), HasSubstr("a run refuses those"))));
}

TEST_F(QuantizedModel, IsRepackedWithoutAChangeOfItsRows) {
  for (const Model& model : kModels) {
    SCOPED_TRACE(model.name);
    const std::string path = kQuantized + model.name;
    const std::string out = (root() / model.name).string();
    ASSERT_EQ(
        pack_checkpoint({.model = path, .output = out, .head_format = kInt8, .quiet = true}, {}),
        0);
    const OpenModel packed = open_model(config_for(out));
    const OpenModel open = open_model(config_for(path, kStored, kInt8));
    EXPECT_EQ(packed.block_format, open.block_format);
    EXPECT_EQ(packed.compute_dtype, open.compute_dtype);
    for (const int world : {1, 3}) EXPECT_EQ(all_shards(packed, world), all_shards(open, world));
    EXPECT_THAT(
        message_of([&] {
          pack_checkpoint(
              {.model = path, .output = out + "-again", .weight_format = kInt4, .quiet = true}, {});
        }),
        HasSubstr("--weight-format asks for"));
    // As an earlier version wrote them, rows may have another length.
    std::fstream file(out + "/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    std::string start(4096, '\0');
    file.read(start.data(), static_cast<std::streamsize>(start.size()));
    const std::string version = R"("zero_infer.rows":")";
    const std::size_t at = start.find(version);
    ASSERT_NE(at, std::string::npos);
    file.seekp(static_cast<std::streamoff>(at + version.size()));
    file.put('1').flush();
    EXPECT_THAT(
        message_of([&] { open_model(config_for(out)); }),
        AllOf(HasSubstr("packed rows are of version `1`"), HasSubstr("this version reads 2")));
  }
}

TEST_F(QuantizedModel, WhatConfigSaysMustBeWhatTheTensorsAre) {
  const std::string path = copy_of("gptq-g32");
  edit_config(path, [](json& c) { c["quantization_config"]["group_size"] = 64; });
  EXPECT_THAT(message_of([&] { all_shards(open_model(config_for(path)), 1); }),
              AllOf(HasSubstr("scales`"), HasSubstr("belong to another checkpoint")));
  edit_config(path, [](json& c) { c["quantization_config"] = {{"quant_method", "awq"}}; });
  EXPECT_THAT(message_of([&] { all_shards(open_model(config_for(path)), 1); }),
              HasSubstr("qweight` has the shape"));
  edit_config(path, [](json& c) { c["quantization_config"] = {{"quant_method", "fp8"}}; });
  EXPECT_THAT(message_of([&] { open_model(config_for(path)); }), HasSubstr("does not say how"));
  edit_config(path, [](json& c) { c.erase("quantization_config"); });
  EXPECT_THAT(message_of([&] { open_model(config_for(path)); }), HasSubstr("does not say how"));
}

/// Matrices that were left in 16 bits when the others were quantized.
TEST_F(QuantizedModel, LeavesMatricesAsTheyAreStored) {
  const OpenModel open = open_model(config_for(kQuantized + "ct-some-left"));
  EXPECT_EQ(name_of(open.block_format), "int4g32bf16z");
  std::set<std::string> left;
  for (const auto& [name, format] : open.other_formats) {
    EXPECT_EQ(format, WeightFormat(DType::kBFloat16)) << name;
    left.insert(name);
  }
  EXPECT_THAT(left,
              ElementsAre("layers.0.mlp.down_proj.weight", "layers.1.self_attn.k_proj.weight",
                          "layers.1.self_attn.q_proj.weight", "layers.1.self_attn.v_proj.weight"));
  const PartitionLayout layout(open.model->spec().blocks[0], open.block_formats(), 2);
  for (std::size_t i = 0; i < layout.matrices().size(); ++i) {
    const PartitionLayout::Matrix& matrix = layout.matrices()[i];
    const bool is_left = left.contains(matrix.tensor.name);
    EXPECT_EQ(matrix.format, is_left ? WeightFormat(DType::kBFloat16) : open.block_format);
    EXPECT_EQ(matrix.bytes, static_cast<std::size_t>(matrix.rows_per_rank) *
                                matrix.format.row_bytes(matrix.tensor.shape[1]));
  }
  // A checkpoint of `zero-infer pack` has one format.
  EXPECT_THAT(message_of([&] {
                pack_checkpoint({.model = kQuantized + "ct-some-left",
                                 .output = root() / "packed",
                                 .head_format = kInt8,
                                 .quiet = true},
                                {});
              }),
              AllOf(HasSubstr("layers.0.mlp.down_proj.weight` is stored in bfloat16"),
                    HasSubstr("several formats is not packed")));
}

TEST_F(QuantizedModel, MatricesOfOneProductHaveOneFormat) {
  const std::string path = (root() / "mixed").string();
  fs::create_directory(path);
  const test::QuantizedKind kind = test::quantized_kinds().front();  // gptq g32
  const json config = test::quantized_config(kind.config);
  test::write_text(path + "/config.json", config.dump());
  const ModelConfig parsed = ModelConfig::load(path);
  const auto model = make_model(parsed, true);
  test::TestTensors tensors;
  const auto elements = [&](const TensorSpec& t) {
    const auto bytes = static_cast<std::size_t>(t.elements()) * 2;
    tensors["model." + t.name] = {"BF16", t.shape, std::string(bytes, '\0')};
  };
  const ModelSpec& spec = model->spec();
  elements(spec.embedding);
  for (const TensorSpec& t : spec.head.vectors) elements(t);
  const TensorSpec& head = spec.head.matrices.front();
  tensors[head.name] = {"BF16", head.shape,
                        std::string(static_cast<std::size_t>(head.elements()) * 2, '\0')};
  for (const TensorSpec& t : spec.blocks[0].vectors) elements(t);
  for (const TensorSpec& t : spec.blocks[0].matrices) {
    if (t.name.ends_with("k_proj.weight")) {
      elements(t);
      continue;
    }
    const std::string stem = "model." + t.name.substr(0, t.name.rfind('.'));
    tensors.merge(test::quantized_example(kind, stem, t.shape[0], t.shape[1], 1).tensors);
  }
  test::write_tensors(path + "/model.safetensors", tensors);
  EXPECT_THAT(message_of([&] { open_model(config_for(path)); }),
              AllOf(HasSubstr("q_proj.weight` is stored in int4 in groups of 32, with zero points "
                              "(int4g32f16z)"),
                    HasSubstr("k_proj.weight` in bfloat16:"), HasSubstr("multiplied together")));
}

TEST_F(QuantizedModel, AHeadThatIsQuantizedIsRefusedByName) {
  const std::string path = (root() / "head").string();
  fs::create_directory(path);
  const test::QuantizedKind kind = test::quantized_kinds().front();
  json config = test::quantized_config(kind.config);
  config["tie_word_embeddings"] = false;
  test::write_text(path + "/config.json", config.dump());
  test::TestTensors tensors = test::quantized_example(kind, "lm_head", 104, 64, 1).tensors;
  const std::string layer = "model.layers.0.self_attn.q_proj";
  tensors.merge(test::quantized_example(kind, layer, 64, 64, 1).tensors);
  test::write_tensors(path + "/model.safetensors", tensors);
  EXPECT_THAT(message_of([&] { open_model(config_for(path)); }),
              AllOf(HasSubstr("`lm_head.weight` is quantized"), HasSubstr("in 16 bits")));
}

/// Random changes of headers, configs and codes: each is read, or refused as an Error.
TEST_F(QuantizedModel, DamageIsRefusedOrHarmless) {
  std::uint64_t state = 7;
  const auto below = [&state](std::size_t n) {
    state = mix64(state + 1);
    return static_cast<std::size_t>(state % n);
  };
  std::size_t refused = 0, read = 0;
  for (const Model& model : kModels) {
    const std::string path = copy_of(model.name);
    const std::string config = read_all(path + "/config.json");
    const std::string weights = read_all(path + "/model.safetensors");
    std::uint64_t header = 0;
    std::memcpy(&header, weights.data(), sizeof header);
    for (int round = 0; round < 120; ++round) {
      std::string bytes = round % 2 == 0 ? config : weights;
      const std::size_t end = round % 2 == 0   ? bytes.size()
                              : round % 4 == 1 ? 8 + static_cast<std::size_t>(header)
                                               : bytes.size();
      const std::size_t changes = 1 + below(3);
      for (std::size_t i = 0; i < changes; ++i) {
        const std::size_t at = below(end);
        // Digits and letters for others: what JSON still reads.
        bytes[at] =
            below(2) == 0 ? static_cast<char>(below(256)) : "0123456789,:[]{}\"-_"[below(19)];
      }
      test::write_text(path + (round % 2 == 0 ? "/config.json" : "/model.safetensors"), bytes);
      try {
        const OpenModel open = open_model(config_for(path));
        for (const UnitSpec& block : open.model->spec().blocks) {
          const PartitionLayout layout(block, open.block_formats(), 2);
          if (layout.shard_bytes() > (1u << 24)) continue;
          std::vector<std::byte> shard(layout.shard_bytes());
          for (const int rank : {0, 1}) ShardReader(*open.source, layout, rank).read(0, shard);
        }
        ++read;
      } catch (const Error& error) {
        EXPECT_STRNE(error.what(), "");
        ++refused;
      }
      test::write_text(path + "/config.json", config);
      if (round % 2 != 0) test::write_text(path + "/model.safetensors", weights);
    }
  }
  EXPECT_GT(refused, 300u);
  EXPECT_GT(read, 100u);
}

}  // namespace
}  // namespace zi
