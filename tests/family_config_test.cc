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

TEST(FamilyConfig, RefusesWhatIsNotComputedByName) {
  expect_refused(llama(), {{"quantization_config", {{"quant_method", "gptq"}}}},
                 "`quantization_config` is");
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
  const std::map<std::string, std::int64_t> parameters = {{"llama-3.1-8b", 8'030'261'248},
                                                          {"llama-3.1-70b", 70'553'706'496},
                                                          {"llama-3.1-405b", 405'853'388'800},
                                                          {"mistral-7b", 7'248'023'552},
                                                          {"qwen3-32b", 32'762'123'264}};
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
