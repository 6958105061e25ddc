#include "engine/checkpoint_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "zero_infer/error.h"
#include "zero_infer/model.h"

namespace zi {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::ThrowsMessage;

/// A source with any names; each tensor holds one value everywhere.
class NamedSource final : public WeightSource {
 public:
  void read(const TensorSpec& tensor, std::int64_t, std::int64_t count, DType,
            void* dst) const override {
    const std::string name = contains_as_is(tensor.name) ? tensor.name : kPrefix + tensor.name;
    std::fill_n(static_cast<float*>(dst), count, values.at(name));
  }
  bool contains(const std::string& name) const override {
    return contains_as_is(name) || contains_as_is(kPrefix + name);
  }
  std::vector<std::string> names() const override {
    std::vector<std::string> out;
    for (const auto& [name, value] : values) out.push_back(name);
    return out;
  }
  DType stored_dtype(const std::string&) const override { return DType::kBFloat16; }
  std::uint64_t identity() const override { return 1; }
  std::string describe() const override { return "the/checkpoint"; }

  static inline const std::string kPrefix = "transformer.";
  std::map<std::string, float> values;

 private:
  bool contains_as_is(const std::string& name) const { return values.contains(name); }
};

class CheckpointFit : public ::testing::Test {
 protected:
  CheckpointFit() {
    config_.family = "bloom";
    config_.hidden = 64;
    config_.layers = 3;
    config_.heads = 4;
    config_.kv_heads = 4;
    config_.head_dim = 16;
    config_.ffn = 256;
    config_.vocabulary = 100;
    const ModelSpec spec = make_model(config_, false)->spec();
    const auto add = [&](const std::vector<TensorSpec>& tensors) {
      for (const TensorSpec& t : tensors) source_.values[NamedSource::kPrefix + t.name] = 1;
    };
    add({spec.embedding});
    add(spec.vectors);
    add(spec.head.vectors);
    for (const UnitSpec& block : spec.blocks) {
      add(block.matrices);
      add(block.vectors);
    }
  }
  std::vector<std::string> check() const {
    const auto model = make_model(config_, source_.contains(kStoredHead));
    return check_fit(config_, model->spec(), source_);
  }

  ModelConfig config_;
  NamedSource source_;
};

TEST_F(CheckpointFit, HasNothingToSayOfACheckpointThatIsAsItsConfigSays) {
  EXPECT_THAT(check(), IsEmpty());
  // What the reference ignores too.
  source_.values["transformer.h.1.self_attention.scale_mask_softmax.causal_mask"] = 0;
  EXPECT_THAT(check(), IsEmpty());
  config_.tied_head = false;
  source_.values[kStoredHead] = 2;
  EXPECT_THAT(check(), IsEmpty());
}

TEST_F(CheckpointFit, RefusesAHeadThatIsNeitherTiedNorThere) {
  config_.tied_head = false;
  EXPECT_THAT([&] { check(); }, ThrowsMessage<CheckpointError>(AllOf(
                                    HasSubstr("the/checkpoint"), HasSubstr("tie_word_embeddings"),
                                    HasSubstr("lm_head.weight"))));
}

TEST_F(CheckpointFit, TellsAStoredHeadFromATiedOneByItsValues) {
  source_.values[kStoredHead] = 1;  // a copy of the embedding
  EXPECT_THAT(check(), IsEmpty());
  source_.values[kStoredHead] = 2;
  EXPECT_THAT(check(), ElementsAre(AllOf(HasSubstr("the stored head is used"),
                                         HasSubstr("tie_word_embeddings"))));
}

TEST_F(CheckpointFit, WarnsOfBlocksBeyondTheModelsWithTheNumbers) {
  config_.layers = 2;
  EXPECT_THAT(
      check(),
      ElementsAre(AllOf(
          HasSubstr("asks for 2 blocks (n_layer or num_hidden_layers), the checkpoint holds 3"),
          HasSubstr("from block 2 on"), HasSubstr("set it to 3"))));
}

TEST_F(CheckpointFit, AdvisesNoMoreBlocksThanThereAreBeforeAGap) {
  config_.layers = 1;
  std::erase_if(source_.values,
                [](const auto& v) { return v.first.find(".h.1.") != std::string::npos; });
  EXPECT_THAT(check(), ElementsAre(AllOf(HasSubstr("from block 2 on are not used"),
                                         Not(HasSubstr("set it to")))));
}

TEST_F(CheckpointFit, RefusesBlocksThatAreMissingWithTheNumbers) {
  config_.layers = 5;
  EXPECT_THAT(
      [&] { check(); },
      ThrowsMessage<CheckpointError>(HasSubstr(
          "asks for 5 blocks (n_layer or num_hidden_layers), the checkpoint holds 3; block 3 is")));
  config_.layers = 3;
  std::erase_if(source_.values,
                [](const auto& v) { return v.first.find(".h.1.") != std::string::npos; });
  EXPECT_THAT([&] { check(); }, ThrowsMessage<CheckpointError>(HasSubstr("block 1 is the first")));
}

TEST_F(CheckpointFit, WarnsOfTensorsWithoutUseAndNamesOne) {
  source_.values["transformer.h.2.self_attention.adapter.weight"] = 1;
  source_.values["score\n.weight"] = 1;
  EXPECT_THAT(check(), ElementsAre(AllOf(HasSubstr("2 of the checkpoint's 43 tensors"),
                                         HasSubstr("`score\uFFFD.weight`"))));
  source_.values.erase("score\n.weight");
  EXPECT_THAT(check(), ElementsAre(HasSubstr("`transformer.h.2.self_attention.adapter.weight`")));
}

TEST_F(CheckpointFit, PassesOverBiasesOfZerosForMatricesWithoutOne) {
  config_.family = "llama";
  config_.attention_bias = config_.output_bias = config_.mlp_bias = false;
  const ModelSpec spec = make_model(config_, false)->spec();
  source_.values.clear();
  source_.values[spec.embedding.name] = 1;
  for (const TensorSpec& t : spec.head.vectors) source_.values[t.name] = 1;
  for (const UnitSpec& block : spec.blocks) {
    for (const TensorSpec& t : block.matrices) {
      source_.values[t.name] = 1;
      source_.values[t.name.substr(0, t.name.rfind('.')) + ".bias"] = 0;
    }
    for (const TensorSpec& t : block.vectors) source_.values[t.name] = 1;
  }
  EXPECT_THAT(check(), IsEmpty());
  source_.values["layers.1.mlp.down_proj.bias"] = 0.5f;
  EXPECT_THAT(check(), ElementsAre(HasSubstr("`layers.1.mlp.down_proj.bias`")));
  source_.values["layers.1.mlp.down_proj.bias"] = 0;
  source_.values["layers.1.mlp.other.bias"] = 0;
  EXPECT_THAT(check(), ElementsAre(HasSubstr("`layers.1.mlp.other.bias`")));
}

TEST_F(CheckpointFit, WarnsOfATensorThatIsThereUnderBothNames) {
  source_.values["word_embeddings.weight"] = 1;  // this one is read
  EXPECT_THAT(check(), ElementsAre(HasSubstr("`transformer.word_embeddings.weight`")));
}

TEST_F(CheckpointFit, WarnsOfSpecialIdsBeyondTheVocabulary) {
  config_.eos_ids = {99, 100};
  config_.bos_id = 99;
  config_.pad_id = -1;
  const ModelSpec spec = make_model(config_, false)->spec();
  EXPECT_THAT(
      check_fit(config_, spec, source_),
      ElementsAre(HasSubstr("`eos_token_id` 100 is beyond the vocabulary of 100: nothing")));
  config_.eos_ids = {99};
  config_.bos_id = config_.pad_id = 1000;
  EXPECT_THAT(check_fit(config_, spec, source_),
              ElementsAre(HasSubstr("`bos_token_id` 1000"), HasSubstr("`pad_token_id` 1000")));
}

TEST_F(CheckpointFit, LeavesForeignNamesToTheReader) {
  source_.values = {{"model.layers.0.weight", 1}};
  EXPECT_NO_THROW(check());
}

}  // namespace
}  // namespace zi
