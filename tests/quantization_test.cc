// What `quantization_config` of other programs means.

#include "zero_infer/quantization.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/quantization.h"
#include "quantized_checkpoint.h"
#include "zero_infer/error.h"
#include "zero_infer/model_config.h"

namespace zi {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::ThrowsMessage;
using Layout = Quantization::Layout;
using test::quantization_of;

const json kGptq = {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 128}};
const json kAwq = {{"quant_method", "awq"}};
const json kFp8 = {{"quant_method", "fp8"}};

json compressed_with(const json& weights, const std::string& format = "pack-quantized") {
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"config_groups", {{"group_0", {{"weights", weights}, {"targets", {"Linear"}}}}}}};
}
const json kW4 = {{"num_bits", 4}, {"type", "int"}, {"strategy", "group"}, {"group_size", 64}};

void expect_named(json config, const json& more, const std::string& part) {
  config.update(more);
  EXPECT_THAT([&] { quantization_of(config); },
              ThrowsMessage<CheckpointError>(AllOf(HasSubstr("dir/config.json"),
                                                   HasSubstr("`quantization_config." + part),
                                                   Not(HasSubstr("\n")))))
      << config;
}

json with(json config, const json& more) {
  config.update(more);
  return config;
}

TEST(QuantizationConfig, HasTheDefaultsOfItsPrograms) {
  const Quantization gptq = quantization_of(kGptq);
  EXPECT_EQ(gptq.layout, Layout::kGptq);
  EXPECT_EQ(name_of(gptq.format), "int4g128f16");
  EXPECT_EQ(gptq.zero_offset, 1);
  EXPECT_TRUE(gptq.symmetric);
  const Quantization awq = quantization_of(kAwq);
  EXPECT_EQ(awq.layout, Layout::kAwq);
  EXPECT_EQ(name_of(awq.format), "int4g128f16z");
  EXPECT_EQ(awq.zero_offset, 0);
  const Quantization fp8 = quantization_of(kFp8);
  EXPECT_EQ(fp8.layout, Layout::kFloat8);
  EXPECT_EQ(name_of(fp8.format), "float8f32");
  EXPECT_EQ(quantization_of(compressed_with(kW4)).layout, Layout::kPacked);
  EXPECT_EQ(name_of(quantization_of(compressed_with(kW4)).format), "int4g64bf16");
  json without = kW4;
  without.erase("strategy");
  EXPECT_EQ(name_of(quantization_of(compressed_with(without)).format), "int4g64bf16");
  EXPECT_EQ(
      name_of(quantization_of(compressed_with({{"type", "float"}}, "float-quantized")).format),
      "float8bf16");
  EXPECT_EQ(name_of(quantization_of(compressed_with({{"type", "int"}}, "int-quantized")).format),
            "int8bf16");
}

TEST(QuantizationConfig, SaysWhatChangesTheValues) {
  EXPECT_EQ(quantization_of(with(kGptq, {{"checkpoint_format", "gptq_v2"}})).zero_offset, 0);
  EXPECT_EQ(
      name_of(
          quantization_of(with(kGptq, {{"group_size", -1}, {"bits", 8}, {"sym", false}})).format),
      "int8f16z");
  EXPECT_EQ(name_of(quantization_of(compressed_with(with(kW4, {{"symmetric", false}}))).format),
            "int4g64bf16z");
  const Quantization blocks = quantization_of(with(kFp8, {{"weight_block_size", {64, 128}}}));
  EXPECT_EQ(blocks.format.group, 128);
  EXPECT_EQ(blocks.group_rows, 64);
  const Quantization structure = quantization_of(
      compressed_with({{"type", "float"}, {"strategy", "block"}, {"block_structure", {32, 16}}},
                      "float-quantized"));
  EXPECT_EQ(structure.format.group, 16);
  EXPECT_EQ(structure.group_rows, 32);
  // Ranks compare the text: each of these is another one.
  std::set<std::string> texts;
  const json all[] = {kGptq,
                      with(kGptq, {{"checkpoint_format", "gptq_v2"}}),
                      with(kGptq, {{"sym", false}}),
                      with(kGptq, {{"bits", 8}}),
                      kAwq,
                      kFp8,
                      with(kFp8, {{"weight_block_size", {64, 128}}}),
                      with(kFp8, {{"weight_block_size", {128, 128}}}),
                      compressed_with(kW4),
                      compressed_with(with(kW4, {{"group_size", 32}}))};
  for (const json& config : all) texts.insert(quantization_of(config).text());
  EXPECT_EQ(texts.size(), std::size(all));
  EXPECT_EQ(Quantization{}.text(), "");
}

TEST(QuantizationConfig, AnEarlyKeyIsReadAsWell) {
  json config = test::quantized_config(compressed_with(kW4));
  config["compression_config"] = config["quantization_config"];
  config.erase("quantization_config");
  EXPECT_EQ(ModelConfig::parse(config.dump(), {}, "dir").quantization.layout, Layout::kPacked);
  config.erase("compression_config");
  EXPECT_EQ(ModelConfig::parse(config.dump(), {}, "dir").quantization, Quantization{});
}

TEST(QuantizationConfig, NamesWhatIsNotSupported) {
  for (const char* method : {"bitsandbytes", "hqq", "modelopt", "fbgemm_fp8", "mxfp4", "AWQ"}) {
    expect_named({{"quant_method", method}}, json::object(), "quant_method` is");
  }
  expect_named({{"bits", 4}}, json::object(), "quant_method` is missing: it is one of `gptq`");
  expect_named(kGptq, {{"bits", 3}}, "bits` is `3`, expected 4 or 8");
  expect_named(kGptq, {{"bits", nullptr}}, "bits` is");
  for (const json& group : {json(0), json(-2), json(24), json("128"), json(1u << 30), json(1.5),
                            json(std::numeric_limits<std::uint64_t>::max())}) {
    expect_named(kGptq, {{"group_size", group}}, "group_size` is");
  }
  expect_named(kGptq, {{"checkpoint_format", "marlin"}}, "checkpoint_format` is");
  expect_named(kGptq, {{"format", "bitblas"}}, "format` is");
  expect_named(kGptq, {{"is_marlin_format", true}}, "is_marlin_format` is");
  expect_named(kGptq, {{"dynamic", {{"-:.*down.*", json::object()}}}}, "dynamic` is");
  expect_named(kGptq, {{"lm_head", true}}, "lm_head` is");
  expect_named(kGptq, {{"pack_dtype", "int16"}}, "pack_dtype` is");
  expect_named(kGptq, {{"sym", "yes"}}, "sym` is");
  expect_named(kAwq, {{"version", "gemv"}}, "version` is");
  expect_named(kAwq, {{"bits", 8}}, "bits` is `8`, expected 4");
  expect_named(kAwq, {{"zero_point", false}}, "zero_point` is");
  expect_named(kAwq, {{"backend", "llm-awq"}}, "backend` is");
  expect_named(kFp8, {{"fmt", "e5m2"}}, "fmt` is");
  expect_named(kFp8, {{"scale_fmt", "ue8m0"}}, "scale_fmt` is");
  for (const json& block : {json(128), json::array({128}), json::array({128, 24}),
                            json::array({0, 128}), json::array({128, -128})}) {
    expect_named(kFp8, {{"weight_block_size", block}}, "weight_block_size` is");
  }
  expect_named(compressed_with(kW4), {{"config_groups", nullptr}}, "config_groups` is");
  expect_named(compressed_with(kW4),
               {{"config_groups", {{"a", {{"weights", kW4}}}, {"b", {{"weights", kW4}}}}}},
               "config_groups` has 2 groups");
  expect_named(compressed_with(kW4), {{"format", "marlin-24"}}, "format` is");
  EXPECT_THAT([] { quantization_of(compressed_with(kW4, "marlin-24")); },
              ThrowsMessage<CheckpointError>(HasSubstr("use a checkpoint in one of these")));
  EXPECT_THAT(
      [] {
        quantization_of(with(kFp8, {{"scale_fmt", "ue8m0"}}));
      },
      ThrowsMessage<CheckpointError>(HasSubstr("use a checkpoint that has this")));
  expect_named(compressed_with(kW4), {{"format", "nvfp4-pack-quantized"}}, "format` is");
  expect_named(compressed_with(kW4), {{"transform_config", {{"config_groups", {1}}}}},
               "transform_config` is");
  expect_named(compressed_with(kW4), {{"sparsity_config", {{"format", "sparse-24-bitmask"}}}},
               "sparsity_config.format` is");
  const std::string weights = "config_groups.group_0.weights.";
  expect_named(compressed_with(with(kW4, {{"num_bits", 3}})), json::object(),
               weights + "num_bits` is `3`");
  expect_named(compressed_with(with(kW4, {{"group_size", 40}})), json::object(),
               weights + "group_size` is");
  expect_named(compressed_with(with(kW4, {{"strategy", "tensor_group"}})), json::object(),
               weights + "strategy` is");
  expect_named(compressed_with(kW4, "int-quantized"), json::object(), weights + "num_bits` is `4`");
  expect_named(compressed_with({{"type", "float"}, {"num_bits", 4}}, "float-quantized"),
               json::object(), weights + "num_bits` is `4`");
  expect_named(compressed_with({{"type", "float"}, {"strategy", "block"}}, "float-quantized"),
               json::object(), weights + "block_structure` is");
}

TEST(QuantizationConfig, NamesOfGroupsMayBeAnyText) {
  const json group = {{"weights", kW4}};
  const auto named = [&](const std::string& name, const json& value) {
    return with(compressed_with(kW4), {{"config_groups", {{name, value}}}});
  };
  expect_named(named("a", nullptr), json::object(), "config_groups.a` is `null`");
  expect_named(named("a", 3), json::object(), "config_groups.a` is `3`");
  expect_named(named("a", json::object()), json::object(), "config_groups.a.weights` is `null`");
  const std::string with_nul("a\0b", 3);
  for (const std::string& name : {with_nul, std::string(), std::string("\x1b[31m\nb")}) {
    EXPECT_EQ(quantization_of(named(name, group)).layout, Layout::kPacked);
  }
  expect_named(named(with_nul, nullptr), json::object(), "config_groups.a\uFFFDb` is");
  // No control character reaches a terminal, and the key is seen behind a name of any length.
  const json three = {{"weights", with(kW4, {{"num_bits", 3}})}};
  expect_named(named("\x1b[31m\nb", three), json::object(),
               "config_groups.\uFFFD[31m\uFFFDb.weights.num_bits` is `3`");
  try {
    quantization_of(named(std::string(1u << 20, 'g'), three));
    FAIL();
  } catch (const CheckpointError& error) {
    EXPECT_THAT(error.what(), HasSubstr("ggg.weights.num_bits` is `3`"));
    EXPECT_LT(std::string(error.what()).size(), 600u);
  }
}

TEST(QuantizationConfig, SaysWhetherColumnsMayBeInAnotherOrder) {
  EXPECT_FALSE(quantization_of(kGptq).ordered);
  EXPECT_TRUE(quantization_of(with(kGptq, {{"desc_act", true}})).ordered);
  // Whole rows are one group.
  EXPECT_FALSE(quantization_of(with(kGptq, {{"desc_act", true}, {"group_size", -1}})).ordered);
  const auto order = [](const json& value) {
    return quantization_of(compressed_with(with(kW4, {{"actorder", value}})));
  };
  for (const json& none : {json(nullptr), json(false), json("weight"), json("static")}) {
    EXPECT_FALSE(order(none).ordered) << none;
  }
  for (const json& some : {json(true), json("group"), json("GROUP"), json("dynamic")}) {
    EXPECT_TRUE(order(some).ordered) << some;
    EXPECT_THAT(quantization_warnings(order(some), "dir/config.json", true),
                ElementsAre(AllOf(HasSubstr("dir/config.json"), HasSubstr("another order"))));
    EXPECT_THAT(quantization_warnings(order(some), "dir/config.json"), IsEmpty());
  }
  expect_named(compressed_with(with(kW4, {{"actorder", "rows"}})), json::object(),
               "config_groups.group_0.weights.actorder` is `\"rows\"`");
  expect_named(compressed_with(with(kW4, {{"actorder", 1}})), json::object(),
               "config_groups.group_0.weights.actorder` is");
}

TEST(QuantizationConfig, WarnsOfInputsThatStayIn16BitsAndOfUnknownKeysOnceEach) {
  const auto lines = [](const json& config) {
    return quantization_warnings(quantization_of(config), "dir/config.json");
  };
  EXPECT_THAT(lines(kGptq), IsEmpty());
  EXPECT_THAT(lines(compressed_with(kW4)), IsEmpty());
  EXPECT_THAT(quantization_warnings({}, "dir/config.json"), IsEmpty());
  EXPECT_THAT(lines(with(kFp8, {{"activation_scheme", "dynamic"}})),
              ElementsAre(AllOf(HasSubstr("dir/config.json"),
                                HasSubstr("the inputs of products stay in 16 bits"))));
  EXPECT_THAT(lines(with(compressed_with(kW4), {{"kv_cache_scheme", {{"num_bits", 8}}}})),
              ElementsAre(HasSubstr("keys and values stay in 16 bits")));
  EXPECT_THAT(lines(with(kGptq, {{"iters", 200}, {"amp", true}, {"unused", nullptr}})),
              ElementsAre(HasSubstr("does not know `quantization_config.amp`, "
                                    "`quantization_config.iters`:")));
  // Keys that are refused with other values.
  EXPECT_THAT(lines(with(kGptq, {{"dynamic", json::object()},
                                 {"adapter", json::object()},
                                 {"rotation", json::array()},
                                 {"lm_head", 0},
                                 {"is_marlin_format", 0}})),
              IsEmpty());
  EXPECT_THAT(lines(with(kFp8, {{"modules_to_convert", json::array()}})), IsEmpty());
}

}  // namespace
}  // namespace zi
