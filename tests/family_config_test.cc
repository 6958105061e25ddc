#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "zero_infer/error.h"
#include "zero_infer/model.h"
#include "zero_infer/model_config.h"

/// What config.json of each family means, with the defaults of Hugging Face transformers.
namespace zi {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

json llama(const char* type = "llama") {
  return {{"model_type", type},       {"hidden_size", 64},        {"num_hidden_layers", 2},
          {"num_attention_heads", 4}, {"num_key_value_heads", 2}, {"intermediate_size", 96},
          {"vocab_size", 100}};
}

json opt() {
  return {{"model_type", "opt"},      {"hidden_size", 64}, {"num_hidden_layers", 2},
          {"num_attention_heads", 4}, {"ffn_dim", 96},     {"vocab_size", 100},
          {"word_embed_proj_dim", 64}};
}

ModelConfig parse(const json& config) { return ModelConfig::parse(config.dump(), {}, "dir"); }

ModelConfig parse(json config, const json& more) {
  config.update(more);
  return parse(config);
}

void expect_refused(json config, const json& more, const std::string& part) {
  config.update(more);
  EXPECT_THAT([&] { parse(config); },
              ThrowsMessage<CheckpointError>(AllOf(HasSubstr("dir/config.json"), HasSubstr(part))))
      << more;
}

TEST(FamilyConfig, LlamaHasTheDefaultsOfTheReference) {
  const ModelConfig c = parse(llama());
  EXPECT_EQ(c.kv_heads, 2);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.ffn, 96);
  EXPECT_EQ(c.max_positions, 2048);
  EXPECT_EQ(c.rotary.elements, 16);
  EXPECT_EQ(c.rotary.theta, 10000);
  EXPECT_EQ(c.rotary.scaling, RotaryScaling::kNone);
  EXPECT_EQ(c.activation, Activation::kSilu);
  EXPECT_FLOAT_EQ(c.norm_epsilon, 1e-6f);
  EXPECT_FALSE(c.attention_bias || c.output_bias || c.mlp_bias || c.tied_head);
  json without = llama();
  without.erase("num_key_value_heads");
  EXPECT_EQ(parse(without).kv_heads, 4);
}

TEST(FamilyConfig, EachFamilyHasTheBiasesOfTheReference) {
  const ModelConfig all = parse(llama(), {{"attention_bias", true}, {"mlp_bias", true}});
  EXPECT_TRUE(all.attention_bias && all.output_bias && all.mlp_bias);
  const ModelConfig qwen2 = parse(llama("qwen2"));
  EXPECT_TRUE(qwen2.attention_bias);
  EXPECT_FALSE(qwen2.output_bias || qwen2.mlp_bias);
  const ModelConfig qwen3 = parse(llama("qwen3"), {{"attention_bias", true}});
  EXPECT_TRUE(qwen3.attention_bias && qwen3.output_bias);
  EXPECT_FALSE(parse(llama("mistral")).attention_bias);
  const ModelConfig o = parse(opt());
  EXPECT_TRUE(o.attention_bias && o.output_bias && o.mlp_bias && o.tied_head);
  EXPECT_EQ(o.activation, Activation::kRelu);
  EXPECT_EQ(o.max_positions, 2048);
  EXPECT_FALSE(parse(opt(), {{"enable_bias", false}}).output_bias);
}

TEST(FamilyConfig, HeadsHaveTheirOwnSizeWhereTheConfigSaysSo) {
  EXPECT_EQ(parse(llama("qwen3")).head_dim, 128);
  EXPECT_EQ(parse(llama(), {{"head_dim", 80}}).head_dim, 80);
  EXPECT_EQ(parse(llama("mistral"), {{"head_dim", nullptr}}).head_dim, 16);
  expect_refused(llama(), {{"hidden_size", 66}}, "4 heads do not divide a hidden size of 66");
  expect_refused(llama(), {{"num_key_value_heads", 3}},
                 "3 heads of keys and values (`num_key_value_heads`) do not divide 4");
  expect_refused(llama(), {{"head_dim", 15}}, "heads of 15 elements cannot be rotated in pairs");
  EXPECT_THAT(
      [] {
        make_model(parse(llama(), {{"head_dim", 512}}), true);
      },
      ThrowsMessage<CheckpointError>(HasSubstr("heads of 512 elements")));
  json without = llama("qwen2");
  without.erase("num_key_value_heads");
  expect_refused(without, json::object(), "`num_key_value_heads` is missing");
}

TEST(FamilyConfig, WindowsBoundASequence) {
  EXPECT_EQ(parse(llama("mistral")).max_positions, 4096) << "the reference's default window";
  EXPECT_EQ(parse(llama("mistral"), {{"sliding_window", nullptr}}).max_positions, 131072);
  EXPECT_EQ(parse(llama("mistral"), {{"sliding_window", 100}}).max_positions, 100);
  EXPECT_EQ(parse(llama("qwen2"), {{"sliding_window", 100}}).max_positions, 32768);
  const json on = {{"use_sliding_window", true}, {"sliding_window", 100}};
  EXPECT_EQ(parse(llama("qwen2"), on).max_positions, 32768) << "layers from 28 on alone slide";
  json first = on;
  first["max_window_layers"] = 1;
  EXPECT_EQ(parse(llama("qwen2"), first).max_positions, 100);
  const json types = {{"layer_types", {"full_attention", "sliding_attention"}},
                      {"sliding_window", 50}};
  EXPECT_EQ(parse(llama("qwen3"), types).max_positions, 50);
  expect_refused(llama("qwen3"), {{"layer_types", {"linear_attention"}}}, "`layer_types` is");
}

TEST(FamilyConfig, ReadsScaledRotationsUnderBothNames) {
  const json yarn = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 1024}};
  const ModelConfig old = parse(llama("qwen2"), {{"rope_scaling", yarn}, {"rope_theta", 1e6}});
  EXPECT_EQ(old.rotary.scaling, RotaryScaling::kYarn);
  EXPECT_EQ(old.rotary.theta, 1e6);
  EXPECT_DOUBLE_EQ(old.rotary.attention_factor, 0.1 * std::log(4.0) + 1);
  json renamed = yarn;
  renamed["rope_type"] = "yarn";
  renamed["rope_theta"] = 1e6;
  EXPECT_EQ(parse(llama("qwen2"), {{"rope_parameters", renamed}}).rotary, old.rotary);
  const json more = {{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}},
                     {"max_position_embeddings", 1000}};
  EXPECT_EQ(parse(llama(), more).max_positions, 4000) << "the length that it was scaled to";
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  EXPECT_EQ(parse(llama(), {{"rope_scaling", llama3}}).rotary.original_positions, 8192);
  for (const char* type : {"longrope", "su", "mrope"}) {
    expect_refused(llama(), {{"rope_scaling", {{"type", type}, {"factor", 2.0}}}},
                   "`rope_scaling.type` is");
  }
  expect_refused(llama(), {{"rope_scaling", {{"type", "linear"}}}}, "`rope_scaling.factor` is");
  expect_refused(llama(), {{"rope_scaling", {{"type", "linear"}, {"factor", -1.0}}}},
                 "`rope_scaling.factor` is");
  expect_refused(llama(),
                 {{"rope_scaling",
                   {{"rope_type", "llama3"},
                    {"factor", 8.0},
                    {"low_freq_factor", 4.0},
                    {"high_freq_factor", 4.0}}}},
                 "`rope_scaling.high_freq_factor` is");
  expect_refused(llama(), {{"rope_theta", 1.0}}, "`rope_theta` is");
  expect_refused(llama(), {{"partial_rotary_factor", 0.5}}, "`partial_rotary_factor` is");
}

/// A scaling object with `more` in it.
json scaled(const char* type, const json& more = json::object()) {
  json all = {{"rope_type", type}, {"factor", 4.0}};
  if (all["rope_type"] == "llama3") {
    all.update({{"low_freq_factor", 1.0}, {"high_freq_factor", 4.0}});
  }
  all.update(more);
  return all;
}

TEST(FamilyConfig, OneObjectOfScalingUnderTwoNamesIsThatObject) {
  for (const char* type : {"linear", "dynamic", "llama3", "yarn"}) {
    for (const json& positions : {json::object(), json{{"max_position_embeddings", 1000}}}) {
      json both = positions;
      both["rope_scaling"] = scaled(type);
      const ModelConfig once = parse(llama(), both);
      both["rope_parameters"] = scaled(type);
      EXPECT_EQ(parse(llama(), both), once) << type;
      both["rope_parameters"] = {{"type", type}};
      both["rope_parameters"].update(scaled(type));
      both["rope_parameters"].erase("rope_type");
      EXPECT_EQ(parse(llama(), both), once) << type << " under its old name";
      both["rope_parameters"] = json::object();
      EXPECT_EQ(parse(llama(), both), once) << type << " beside an empty object";
    }
  }
  expect_refused(llama(),
                 {{"rope_scaling", scaled("linear")}, {"rope_parameters", scaled("dynamic")}},
                 "`rope_scaling.rope_type` is \"linear\" and `rope_parameters.rope_type` is "
                 "\"dynamic\"");
  expect_refused(llama(),
                 {{"rope_scaling", scaled("linear")},
                  {"rope_parameters", scaled("linear", {{"factor", 2.0}})}},
                 "`rope_scaling.factor` is 4.0 and `rope_parameters.factor` is 2.0");
  expect_refused(llama(),
                 {{"rope_scaling", scaled("linear")},
                  {"rope_parameters", scaled("linear", {{"rope_theta", 1e6}})}},
                 "`rope_scaling.rope_theta` is not there and `rope_parameters.rope_theta` is");
}

TEST(FamilyConfig, KeysOfRotationsCountAtBothLevelsAndMustAgree) {
  for (const char* type : {"llama3", "yarn"}) {
    const json inside = {{"rope_scaling", scaled(type, {{"original_max_position_embeddings", 64},
                                                        {"rope_theta", 5e5}})}};
    json outside = {{"rope_scaling", scaled(type)},
                    {"original_max_position_embeddings", 64},
                    {"rope_theta", 5e5}};
    EXPECT_EQ(parse(llama(), outside), parse(llama(), inside)) << type;
    EXPECT_EQ(parse(llama(), outside).rotary.original_positions, 64);
    outside["rope_scaling"]["original_max_position_embeddings"] = 65;
    expect_refused(llama(), outside,
                   "`original_max_position_embeddings` is 64 and "
                   "`rope_scaling.original_max_position_embeddings` is 65");
  }
  expect_refused(llama(), {{"rope_theta", 5e5}, {"rope_parameters", {{"rope_theta", 10000.0}}}},
                 "`rope_theta` is 500000 and `rope_parameters.rope_theta` is 10000");
  expect_refused(llama(), {{"rope_parameters", {{"partial_rotary_factor", 0.5}}}},
                 "`rope_parameters.partial_rotary_factor` is");
  expect_refused(llama(), {{"partial_rotary_factor", 0}}, "`partial_rotary_factor` is");
  expect_refused(llama(), {{"residual_multiplier", 0}}, "`residual_multiplier` is");
}

TEST(FamilyConfig, RotationsByLayerTypeAreTakenWhereAllAreEqual) {
  const json both = {{"full_attention", scaled("linear")}, {"sliding_attention", scaled("linear")}};
  EXPECT_EQ(parse(llama(), {{"rope_parameters", both}}),
            parse(llama(), {{"rope_scaling", scaled("linear")}}));
  json differ = both;
  differ["sliding_attention"]["factor"] = 2.0;
  expect_refused(llama(), {{"rope_parameters", differ}},
                 "`rope_parameters.full_attention` and `rope_parameters.sliding_attention` differ: "
                 "rotations by the type of layer are not supported");
  json mixed = both;
  mixed["factor"] = 2.0;
  expect_refused(llama(), {{"rope_parameters", mixed}}, "`rope_parameters.factor` is `2.0`");
}

TEST(FamilyConfig, KeysThatNobodyReadsInAScalingObjectAreRefused) {
  const auto refused = [](const json& object, const std::string& part) {
    expect_refused(llama(), {{"rope_scaling", object}}, part);
  };
  refused(scaled("linear", {{"factr", 2.0}}), "`rope_scaling.factr` is `2.0`");
  refused(scaled("linear", {{"factr", 2.0}}), "did you mean `factor`?");
  refused({{"factor", 4.0}}, "a `rope_type` beside it, which is missing");
  refused(scaled("default"), "the type `default` scales nothing");
  refused(scaled("default", {{"type", "linear"}}),
          "`rope_scaling.rope_type` is default and `rope_scaling.type` is linear");
  EXPECT_EQ(parse(llama(), {{"rope_scaling", scaled("default", {{"factor", 1.0}})}}),
            parse(llama()));
  EXPECT_EQ(parse(llama(), {{"rope_scaling", scaled("linear", {{"finetuned", true}})}}),
            parse(llama(), {{"rope_scaling", scaled("linear")}}));
}

TEST(FamilyConfig, NumbersOfRotationsThatMakeNoSenseAreRefused) {
  const auto refused = [](const json& object, const std::string& key) {
    expect_refused(llama(), {{"rope_scaling", object}}, "`rope_scaling." + key + "` is");
  };
  for (const char* type : {"linear", "dynamic", "llama3", "yarn"}) {
    refused(scaled(type, {{"factor", 0.001}}), "factor");
    refused(scaled(type, {{"factor", nullptr}}), "factor");
    json without = scaled(type);
    without.erase("factor");
    refused(without, "factor");
    for (const json& original : {json(1e-30), json(1e30), json(0.5), json(100.5), json(0)}) {
      refused(scaled(type, {{"original_max_position_embeddings", original}}),
              "original_max_position_embeddings");
    }
  }
  refused(scaled("yarn", {{"beta_fast", 1}, {"beta_slow", 32}}), "beta_fast");
  refused(scaled("yarn", {{"beta_slow", 32}}), "beta_slow");
  for (const char* key : {"attention_factor", "mscale", "mscale_all_dim"}) {
    refused(scaled("yarn", {{key, 1e-30}}), key);
    refused(scaled("yarn", {{key, 1e30}}), key);
  }
  // The reference takes the ratio of the lengths for a factor that is null.
  const json ratio =
      scaled("yarn", {{"factor", nullptr}, {"original_max_position_embeddings", 512}});
  EXPECT_EQ(parse(llama(), {{"rope_scaling", ratio}}).rotary.factor, 4);
}

TEST(FamilyConfig, NullIsNamedAsNullAndMayMeanADefault) {
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    EXPECT_EQ(parse(llama(family), {{"num_key_value_heads", nullptr}}).kv_heads, 4) << family;
  }
  expect_refused(llama(), {{"hidden_size", nullptr}}, "`hidden_size` is null");
  expect_refused(llama(), {{"model_type", nullptr}}, "`model_type` is null");
  expect_refused(opt(), {{"ffn_dim", nullptr}}, "`ffn_dim` is null");
  json without = llama();
  without.erase("hidden_size");
  expect_refused(without, json::object(), ": `hidden_size` is missing");
  EXPECT_EQ(parse(llama("qwen2"), {{"max_window_layers", 0}}).max_positions, 32768);
  EXPECT_EQ(parse(llama("qwen2"),
                  {{"max_window_layers", 0}, {"use_sliding_window", true}, {"sliding_window", 100}})
                .max_positions,
            100);
}

TEST(FamilyConfig, FrequenciesAreFiniteAndFallForEveryScaling) {
  for (const RotaryScaling scaling :
       {RotaryScaling::kNone, RotaryScaling::kLinear, RotaryScaling::kDynamic,
        RotaryScaling::kLlama3, RotaryScaling::kYarn}) {
    for (const double original : {1.0, 4096.0}) {
      const Rotary r{.elements = 64,
                     .theta = 500000,
                     .scaling = scaling,
                     .factor = 8,
                     .original_positions = original};
      const std::vector<float> f = r.frequencies();
      ASSERT_EQ(f.size(), 32u);
      EXPECT_LE(f.front(), 1.0f);
      for (std::size_t i = 0; i < f.size(); ++i) {
        EXPECT_GT(f[i], 0);
        if (i > 0) {
          EXPECT_LT(f[i], f[i - 1]) << i;
        }
      }
    }
  }
  EXPECT_TRUE(Rotary{}.frequencies().empty());
}

TEST(FamilyConfig, TakesThePackingOfZeroInfer) {
  json packing = {{"quant_method", "zero-infer"},
                  {"version", 1},
                  {"weight_format", "int4g16f8"},
                  {"head_format", "float16"}};
  const ModelConfig config = parse(llama(), {{"quantization_config", packing}});
  EXPECT_EQ(config.block_format, "int4g16f8");
  EXPECT_EQ(config.head_format, "float16");
  EXPECT_EQ(parse(llama()).block_format, "");
  const auto refused = [&](const char* key, const json& value, const std::string& with) {
    json other = packing;
    other[key] = value;
    expect_refused(llama(), {{"quantization_config", other}}, with);
  };
  refused("version", 2,
          "`quantization_config.version` is `2`, expected 1, which this version reads");
  refused("weight_format", "int4g24f8", "`quantization_config.weight_format` is");
  refused("head_format", 8, "`quantization_config.head_format` is");
  refused("bits", 4, "does not know the key");
  expect_refused(llama(), {{"quantization_config", "zero-infer"}}, "`quantization_config` is");
}

TEST(FamilyConfig, RefusesWhatIsNotComputedByName) {
  expect_refused(llama(), {{"quantization_config", {{"quant_method", "hqq"}}}},
                 "`quantization_config.quant_method` is");
  expect_refused(llama(), {{"num_local_experts", 8}}, "mixtures of experts are not supported");
  expect_refused(llama(), {{"final_logit_softcapping", 30.0}}, "capped logits");
  expect_refused(llama(), {{"residual_multiplier", 0.22}}, "a scaled residual");
  expect_refused(llama(), {{"hidden_act", "relu2"}}, "`hidden_act` is");
  expect_refused(opt(), {{"do_layer_norm_before", false}}, "OPT-350m");
  expect_refused(opt(), {{"word_embed_proj_dim", 32}}, "`word_embed_proj_dim` is");
  expect_refused(opt(), {{"_remove_final_layer_norm", true}}, "without its last norm");
  expect_refused(llama("mixtral"), json::object(),
                 "models of type `mixtral` are not supported; this version runs `bloom`, `llama`");
  // What changes nothing is taken.
  EXPECT_EQ(parse(llama(), {{"residual_multiplier", 1.0},
                            {"final_logit_softcapping", nullptr},
                            {"pretraining_tp", 1},
                            {"attention_dropout", 0.0}}),
            parse(llama()));
}

TEST(FamilyConfig, NamesTheTensorsOfTheCheckpoint) {
  const auto names = [](const std::vector<TensorSpec>& tensors) {
    std::vector<std::string> out;
    for (const TensorSpec& t : tensors) out.push_back(t.name);
    return out;
  };
  const auto qwen = make_model(parse(llama("qwen3"), {{"head_dim", 32}}), true);
  EXPECT_EQ(qwen->spec().prefix, "model.");
  EXPECT_EQ(qwen->spec().head.matrices.front().name, "lm_head.weight");
  EXPECT_THAT(names(qwen->spec().blocks[1].matrices),
              ElementsAre("layers.1.self_attn.q_proj.weight", "layers.1.self_attn.k_proj.weight",
                          "layers.1.self_attn.v_proj.weight", "layers.1.self_attn.o_proj.weight",
                          "layers.1.mlp.gate_proj.weight", "layers.1.mlp.up_proj.weight",
                          "layers.1.mlp.down_proj.weight"));
  EXPECT_THAT(
      names(qwen->spec().blocks[1].vectors),
      ElementsAre("layers.1.input_layernorm.weight", "layers.1.self_attn.q_norm.weight",
                  "layers.1.self_attn.k_norm.weight", "layers.1.post_attention_layernorm.weight"));
  EXPECT_EQ(qwen->spec().blocks[1].matrices[1].shape, (std::vector<std::int64_t>{64, 64}));
  const auto o = make_model(parse(opt()), false);
  EXPECT_EQ(o->spec().head.matrices.front().name, "decoder.embed_tokens.weight");
  EXPECT_EQ(o->spec().vectors.front().name, "decoder.embed_positions.weight");
  EXPECT_EQ(o->spec().vectors.front().shape, (std::vector<std::int64_t>{2050, 64}));
}

std::int64_t elements_of(const ModelSpec& spec, bool tied) {
  std::int64_t sum = spec.embedding.elements();
  const auto add = [&](const std::vector<TensorSpec>& tensors) {
    for (const TensorSpec& t : tensors) sum += t.elements();
  };
  add(spec.vectors);
  add(spec.head.vectors);
  if (!tied) add(spec.head.matrices);
  for (const UnitSpec& block : spec.blocks) {
    add(block.matrices);
    add(block.vectors);
  }
  return sum;
}

TEST(ShippedShapes, HaveTheParametersOfTheirModelCards) {
  const std::map<std::string, std::int64_t> parameters = {
      {"llama-3.1-8b", 8'030'261'248},       {"llama-3.1-70b", 70'553'706'496},
      {"llama-3.1-405b", 405'853'388'800},   {"mistral-7b", 7'248'023'552},
      {"qwen2.5-1.5b", 1'543'714'304},       {"qwen2.5-1.5b-awq", 1'543'714'304},
      {"qwen2.5-1.5b-fp8", 1'543'714'304},   {"qwen2.5-1.5b-gptq-int4", 1'543'714'304},
      {"qwen2.5-1.5b-w8a16", 1'543'714'304}, {"qwen3-32b", 32'762'123'264}};
  for (const auto& [name, count] : parameters) {
    const auto c = ModelConfig::load(std::string(ZI_SOURCE_DIR "/config/models/") + name);
    EXPECT_EQ(elements_of(make_model(c, !c.tied_head)->spec(), c.tied_head), count) << name;
  }
  for (const auto& [name, billions] :
       {std::pair{"opt-30b", 30.0}, {"opt-66b", 66.0}, {"opt-175b", 175.0}}) {
    const auto c = ModelConfig::load(std::string(ZI_SOURCE_DIR "/config/models/") + name);
    EXPECT_NEAR(static_cast<double>(elements_of(make_model(c, false)->spec(), true)) / 1e9,
                billions, 0.005 * billions)
        << name;
  }
}

}  // namespace
}  // namespace zi
