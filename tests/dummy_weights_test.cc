#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

const TensorSpec kMatrix{"h.3.mlp.dense_h_to_4h.weight", {513, 257}};

std::vector<float> read(const WeightSource& source, const TensorSpec& tensor, std::int64_t first,
                        std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count) + 1, -7.0f);
  source.read(tensor, first, count, DType::kFloat32, values.data());
  EXPECT_EQ(values.back(), -7.0f) << "written beyond the range";
  values.pop_back();
  return values;
}

std::vector<float> read(const WeightSource& source, const TensorSpec& tensor) {
  return read(source, tensor, 0, tensor.elements());
}

TEST(DummyWeights, ValuesDoNotDependOnTheRangesInWhichTheyAreRead) {
  const auto source = make_dummy_weights(5, DType::kBFloat16);
  const std::vector<float> whole = read(*source, kMatrix);
  for (std::int64_t step : {1, 3, 4, 257, 2047, 2048, 5000}) {
    const std::int64_t most = step < 10 ? 500 : kMatrix.elements();
    for (std::int64_t first = 0; first < most; first += step) {
      const std::int64_t count = std::min(step, kMatrix.elements() - first);
      const std::vector<float> part = read(*source, kMatrix, first, count);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first))
          << first << " + " << count;
    }
  }
}

TEST(DummyWeights, ValuesArePinnedDown) {
  // Shard files outlive a build: a change of these values must come with a new format version.
  const auto source = make_dummy_weights(42, DType::kFloat32);
  const std::vector<float> values = read(*source, {"word_embeddings.weight", {4, 4}}, 0, 5);
  EXPECT_THAT(values, ::testing::Pointwise(
                          ::testing::FloatEq(),
                          std::vector<float>{0.0233362764f, 0.00635511708f, -0.000760626572f,
                                             -0.00988708809f, -0.00696509797f}));
}

TEST(DummyWeights, MatricesAreUniformWithStandardDeviation002) {
  const std::vector<float> values = read(*make_dummy_weights(1, DType::kFloat32), kMatrix);
  double sum = 0;
  double squares = 0;
  double most = 0;
  for (float value : values) {
    sum += value;
    squares += double{value} * value;
    most = std::max(most, std::abs(double{value}));
  }
  const auto n = static_cast<double>(values.size());  // 131841
  // Five standard errors: of the mean 0.02 / sqrt(n), of the deviation 0.02 * 0.45 / sqrt(n).
  EXPECT_NEAR(sum / n, 0, 5 * 0.02 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(squares / n), 0.02, 5 * 0.02 * 0.45 / std::sqrt(n));
  EXPECT_LE(most, 0.02 * std::sqrt(3.0) * (1 + 1e-6));
  EXPECT_GE(most, 0.0346);
}

TEST(DummyWeights, DifferBySeedAndByTensor) {
  const auto source = make_dummy_weights(1, DType::kFloat32);
  EXPECT_NE(read(*source, kMatrix), read(*make_dummy_weights(2, DType::kFloat32), kMatrix));
  TensorSpec other = kMatrix;
  other.name = "h.4.mlp.dense_h_to_4h.weight";
  EXPECT_NE(read(*source, kMatrix), read(*source, other));
}

TEST(DummyWeights, NormsAreOneAndBiasesZero) {
  const auto source = make_dummy_weights(1, DType::kFloat16);
  for (const char* name : {"h.0.input_layernorm.weight", "h.1.post_attention_layernorm.weight",
                           "word_embeddings_layernorm.weight", "ln_f.weight"}) {
    EXPECT_THAT(read(*source, {name, {4099}}, 1, 4098), Each(1.0f)) << name;
  }
  for (const char* name : {"ln_f.bias", "h.0.mlp.dense_h_to_4h.bias", "h.0.input_layernorm.bias"}) {
    EXPECT_THAT(read(*source, {name, {33}}), Each(0.0f)) << name;
  }
}

TEST(DummyWeights, AreRoundedToTheStoredTypeWhateverTypeIsAskedFor) {
  for (DType stored : {DType::kBFloat16, DType::kFloat16}) {
    const auto source = make_dummy_weights(9, stored);
    const std::vector<float> wide = read(*source, kMatrix);
    std::vector<std::uint16_t> narrow(wide.size());
    source->read(kMatrix, 0, kMatrix.elements(), stored, narrow.data());
    for (std::size_t i = 0; i < wide.size(); ++i) {
      ASSERT_EQ(wide[i], stored == DType::kBFloat16 ? bfloat16_to_float(narrow[i])
                                                    : float16_to_float(narrow[i]));
    }
    EXPECT_NE(wide, read(*make_dummy_weights(9, DType::kFloat32), kMatrix));
    EXPECT_EQ(source->stored_dtype(kMatrix.name), stored);
  }
}

TEST(DummyWeights, HaveEveryTensorButTheHead) {
  const auto source = make_dummy_weights(7, DType::kBFloat16);
  EXPECT_TRUE(source->contains("word_embeddings.weight"));
  EXPECT_TRUE(make_dummy_weights(7, DType::kBFloat16, true)->contains("lm_head.weight"))
      << "of a model whose head is its own";
  EXPECT_FALSE(source->contains("lm_head.weight"));
  EXPECT_THAT(
      [&] { source->stored_dtype("lm_head.weight"); },
      ThrowsMessage<CheckpointError>(AllOf(HasSubstr("seed 7"), HasSubstr("lm_head.weight"))));
  float value = 0;
  EXPECT_THROW(source->read({"lm_head.weight", {4, 4}}, 0, 1, DType::kFloat32, &value),
               CheckpointError);
}

TEST(DummyWeights, RefuseRangesOutsideTheTensor) {
  const auto source = make_dummy_weights(7, DType::kBFloat16);
  std::vector<float> dst(64);
  for (const auto& [first, count] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {-1, 1}, {0, -1}, {0, 17}, {16, 1}, {17, 0}}) {
    EXPECT_THROW(source->read({"m", {4, 4}}, first, count, DType::kFloat32, dst.data()),
                 CheckpointError)
        << first << " " << count;
  }
  EXPECT_NO_THROW(source->read({"m", {4, 4}}, 16, 0, DType::kFloat32, dst.data()));
}

TEST(DummyWeights, IdentityTellsSeedsAndTypesApart) {
  const std::uint64_t identity = make_dummy_weights(7, DType::kBFloat16)->identity();
  EXPECT_EQ(make_dummy_weights(7, DType::kBFloat16)->identity(), identity);
  EXPECT_NE(make_dummy_weights(8, DType::kBFloat16)->identity(), identity);
  EXPECT_NE(make_dummy_weights(7, DType::kFloat16)->identity(), identity);
}

}  // namespace
}  // namespace zi
