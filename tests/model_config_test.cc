#include "zero_infer/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "synthetic_checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::ThrowsMessage;

class ModelConfigTest : public ::testing::Test {
 protected:
  void write(const std::string& json, const char* name = "config.json") {
    test::write_text(directory_.path() / name, json);
  }
  ModelConfig load() const { return ModelConfig::load(directory_.path()); }
  ModelConfig load(const std::string& json) {
    write(json);
    return load();
  }
  /// A whole config.json with `more` (`"key": value, `) in front.
  static std::string with(const std::string& more) {
    return "{" + more +
           R"("model_type":"bloom","n_embed":64,"n_head":4,"n_layer":2,"vocab_size":100})";
  }
  void expect_refused(const std::string& json, const std::string& part) {
    write(json);
    EXPECT_THAT([&] { load(); },
                ThrowsMessage<CheckpointError>(AllOf(HasSubstr("config.json"), HasSubstr(part))))
        << json;
  }
  test::TemporaryDirectory directory_;
};

TEST_F(ModelConfigTest, ReadsTheBundledModel) {
  const ModelConfig config = ModelConfig::load(ZI_TEST_DATA "/bloom-kjv");
  EXPECT_EQ(config.family, "bloom");
  EXPECT_EQ(config.hidden, 320);
  EXPECT_EQ(config.layers, 6);
  EXPECT_EQ(config.heads, 5);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.ffn, 1280);
  EXPECT_EQ(config.vocabulary, 4096);
  EXPECT_FLOAT_EQ(config.norm_epsilon, 1e-5f);
  EXPECT_FALSE(config.residual_after_norm);
  EXPECT_TRUE(config.tied_head);
  EXPECT_THAT(config.eos_ids, ElementsAre(2));
  EXPECT_EQ(config.bos_id, 1);
  EXPECT_EQ(config.pad_id, 3);
}

TEST_F(ModelConfigTest, TakesEitherNameOfASize) {
  const ModelConfig old_names = load(with(""));
  EXPECT_EQ(old_names.hidden, 64);
  EXPECT_EQ(old_names.head_dim, 16);
  const ModelConfig new_names = load(
      R"({"model_type":"bloom","hidden_size":64,"num_attention_heads":4,"num_hidden_layers":2,"vocab_size":100})");
  EXPECT_EQ(new_names.hidden, 64);
  EXPECT_EQ(new_names.heads, 4);
  EXPECT_EQ(new_names.layers, 2);
  EXPECT_EQ(load(with(R"("hidden_size":64,)")).hidden, 64);
}

TEST_F(ModelConfigTest, RefusesTwoNamesThatDisagree) {
  expect_refused(with(R"("hidden_size":128,)"), "`n_embed` or `hidden_size` mean the same");
}

TEST_F(ModelConfigTest, MissingAndNullKeysHaveDefaults) {
  for (const char* more :
       {"",
        R"("n_inner":null,"eos_token_id":null,"bos_token_id":null,"layer_norm_epsilon":null,)"}) {
    const ModelConfig config = load(with(more));
    EXPECT_EQ(config.ffn, 256);
    EXPECT_FLOAT_EQ(config.norm_epsilon, 1e-5f);
    EXPECT_FALSE(config.residual_after_norm);
    EXPECT_TRUE(config.tied_head);
    EXPECT_THAT(config.eos_ids, IsEmpty());
    EXPECT_EQ(config.bos_id, -1);
    EXPECT_EQ(config.pad_id, -1);
  }
}

TEST_F(ModelConfigTest, ReadsWhatIsGiven) {
  const ModelConfig config = load(with(
      R"("n_inner":200,"layer_norm_epsilon":1e-6,"apply_residual_connection_post_layernorm":true,)"
      R"("tie_word_embeddings":false,"eos_token_id":[2,7],"pad_token_id":-1,)"));
  EXPECT_EQ(config.ffn, 200);
  EXPECT_FLOAT_EQ(config.norm_epsilon, 1e-6f);
  EXPECT_TRUE(config.residual_after_norm);
  EXPECT_FALSE(config.tied_head);
  EXPECT_THAT(config.eos_ids, ElementsAre(2, 7));
  EXPECT_EQ(config.pad_id, -1);
}

TEST_F(ModelConfigTest, ValuesListEveryMember) {
  const ModelConfig base = load(with(""));
  const std::vector<ConfigValue> values = base.values();
  // Does not compile when a member is added: change it below too.
  ModelConfig c = base;
  auto& [family, hidden, layers, heads, kv_heads, head_dim, ffn, vocabulary, max_positions, rotary,
         activation, norm_epsilon, attention_bias, output_bias, mlp_bias, residual_after_norm,
         tied_head, block_format, head_format, quantization, eos_ids, bos_id, pad_id] = c;
  const auto changes = std::to_array<std::function<void()>>(
      {[&family = family] { family = "other"; },
       [&hidden = hidden] { ++hidden; },
       [&layers = layers] { ++layers; },
       [&heads = heads] { ++heads; },
       [&kv_heads = kv_heads] { ++kv_heads; },
       [&head_dim = head_dim] { ++head_dim; },
       [&ffn = ffn] { ++ffn; },
       [&vocabulary = vocabulary] { ++vocabulary; },
       [&max_positions = max_positions] { ++max_positions; },
       [&rotary = rotary] { rotary.theta = std::nextafter(rotary.theta, 0); },
       [&activation = activation] { activation = Activation::kRelu; },
       [&norm_epsilon = norm_epsilon] { norm_epsilon = std::nextafter(norm_epsilon, 1.0f); },
       [&attention_bias = attention_bias] { attention_bias = !attention_bias; },
       [&output_bias = output_bias] { output_bias = !output_bias; },
       [&mlp_bias = mlp_bias] { mlp_bias = !mlp_bias; },
       [&residual_after_norm = residual_after_norm] { residual_after_norm = !residual_after_norm; },
       [&tied_head = tied_head] { tied_head = !tied_head; },
       [&block_format = block_format] { block_format = "int4g16f8"; },
       [&head_format = head_format] { head_format = "int8g32f8"; },
       [&quantization = quantization] { quantization.layout = Quantization::Layout::kGptq; },
       [&eos_ids = eos_ids] {
         eos_ids = {2, 3};
       },
       [&bos_id = bos_id] { ++bos_id; },
       [&pad_id = pad_id] { ++pad_id; }});
  ASSERT_EQ(values.size(), changes.size());
  std::set<std::string> keys;
  for (std::size_t i = 0; i < changes.size(); ++i) {
    c = base;
    changes[i]();
    EXPECT_NE(c, base) << i;
    const std::vector<ConfigValue> changed = c.values();
    for (std::size_t k = 0; k < values.size(); ++k) {
      EXPECT_EQ(changed[k].key, values[k].key);
      EXPECT_EQ(changed[k].value == values[k].value, k != i) << values[k].key << " " << i;
    }
    keys.insert(values[i].key);
  }
  EXPECT_EQ(keys.size(), changes.size());
}

TEST_F(ModelConfigTest, GenerationConfigDecidesWhereTextEnds) {
  write(R"({"eos_token_id":[5,6]})", "generation_config.json");
  EXPECT_THAT(load(with(R"("eos_token_id":2,)")).eos_ids, ElementsAre(5, 6));
  write(R"({"eos_token_id":null})", "generation_config.json");
  EXPECT_THAT(load(with(R"("eos_token_id":2,)")).eos_ids, ElementsAre(2));
  write("{", "generation_config.json");
  EXPECT_THAT([&] { load(); }, ThrowsMessage<CheckpointError>(HasSubstr("generation_config.json")));
}

TEST_F(ModelConfigTest, RefusesMoreLayersAndHeadsThanAnyModelHas) {
  const auto refused = [&](const char* layers, const char* heads, const char* why) {
    write(std::string(R"({"model_type":"bloom","hidden_size":1048576,"num_hidden_layers":)") +
          layers + R"(,"num_attention_heads":)" + heads + R"(,"vocab_size":100})");
    EXPECT_THAT([&] { load(); }, ThrowsMessage<CheckpointError>(HasSubstr(why))) << layers << heads;
  };
  refused("4097", "8", "expected a whole number from 1 to 4096");
  refused("1099511627776", "8", "`num_hidden_layers` is `1099511627776`");
  refused("2", "1048576", "`num_attention_heads` is `1048576`");
}

TEST_F(ModelConfigTest, RefusesSizesThatMultiplyToMoreThanAnyModelHas) {
  // Each is within its own limit. Their bytes would not fit 64 bits: a sum of them could be small.
  expect_refused(
      R"({"model_type":"bloom","hidden_size":1048576,"num_hidden_layers":4096,"n_head":4096,)"
      R"("n_inner":16777216,"vocab_size":2147483647})",
      "are about 2.4e+17 parameters; models of up to 1e+15 are supported");
  expect_refused(with(R"("n_inner":16777217,)"), "a whole number from 1 to 16777216");
  expect_refused(R"({"model_type":"bloom","hidden_size":1048577,"n_layer":1,"n_head":1,)"
                 R"("vocab_size":1})",
                 "a whole number from 1 to 1048576");
  // A hundred times the largest published model.
  EXPECT_EQ(load(R"({"model_type":"bloom","hidden_size":131072,"n_layer":500,"n_head":1024,)"
                 R"("vocab_size":1000000})")
                .ffn,
            524288);
}

TEST_F(ModelConfigTest, RefusesMoreEndsOfTextThanCanBeLookedAt) {
  const auto list = [](int count) {
    std::string ids = "1";
    for (int i = 1; i < count; ++i) ids += ",1";
    return R"("eos_token_id":[)" + ids + "],";
  };
  EXPECT_EQ(load(with(list(1024))).eos_ids.size(), 1024u);
  expect_refused(with(list(1025)), "`eos_token_id` has 1025 token ids; 1024 at most");
}

TEST_F(ModelConfigTest, NamesFileKeyAndValueOfWhatIsWrong) {
  expect_refused("", "not valid JSON");
  expect_refused("[1]", "a JSON object was expected");
  expect_refused(R"({"model_type":"bloom"})", "`n_embed` or `hidden_size` is missing");
  expect_refused(R"({"n_embed":64,"n_head":4,"n_layer":2,"vocab_size":100})",
                 "`model_type` is missing");
  expect_refused(with(R"("model_type":7,)"), "`model_type` is there twice");
  for (const char* value : {"0", "-64", "1.5", "\"64\"", "true", "[64]", "18446744073709551615"}) {
    expect_refused(with(std::string(R"("hidden_size":)") + value + ","), "`hidden_size` is");
    expect_refused(with(std::string(R"("n_inner":)") + value + ","),
                   std::string(value) == "0" ? "expected a whole number from 1" : "`n_inner` is");
  }
  for (const char* value : {"0", "-1e-5", "\"x\"", "1e-60", "1e60"}) {
    expect_refused(with(std::string(R"("layer_norm_epsilon":)") + value + ","),
                   "`layer_norm_epsilon` is");
  }
  expect_refused(with(R"("layer_norm_epsilon":NaN,)"),
                 "not valid JSON: `layer_norm_epsilon` is NaN, which JSON does not have");
  expect_refused(with(R"("tie_word_embeddings":1,)"),
                 "`tie_word_embeddings` is `1`, expected true or false");
  expect_refused(with(R"("eos_token_id":"2",)"), "`eos_token_id` is");
  expect_refused(with(R"("eos_token_id":[2,2147483648],)"), "`eos_token_id` is");
  expect_refused(with(R"("bos_token_id":1.5,)"), "`bos_token_id` is");
}

TEST_F(ModelConfigTest, RefusesHeadsThatDoNotDivideHidden) {
  expect_refused(R"({"model_type":"bloom","n_embed":64,"n_head":5,"n_layer":2,"vocab_size":100})",
                 "5 heads do not divide a hidden size of 64");
}

TEST_F(ModelConfigTest, TellsMissingDirectoriesFromMissingFiles) {
  EXPECT_THAT([&] { load(); }, ThrowsMessage<CheckpointError>(HasSubstr("has no config.json")));
  EXPECT_THAT([&] { ModelConfig::load(directory_.path() / "none"); },
              ThrowsMessage<CheckpointError>(HasSubstr("none is not a directory")));
}

}  // namespace
}  // namespace zi
