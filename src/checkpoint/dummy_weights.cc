#include <fmt/format.h>
#include <xxhash.h>

#include <array>
#include <string_view>

#include "base/json_file.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

/// Raised whenever the values change: shard files written from older values must not be reused.
constexpr std::uint64_t kFormatVersion = 1;
/// Half the width of the uniform distribution whose standard deviation is 0.02: 0.02 * sqrt(3).
constexpr float kHalfWidth = 0.034641016f;

enum class Kind { kMatrix, kOnes, kZeros };

Kind kind_of(const TensorSpec& tensor) {
  if (tensor.shape.size() != 1) return Kind::kMatrix;
  return tensor.name.ends_with(".bias") ? Kind::kZeros : Kind::kOnes;
}

class DummyWeights final : public WeightSource {
 public:
  DummyWeights(std::uint64_t seed, DType stored, bool own_head)
      : seed_(seed), stored_(stored), own_head_(own_head) {}

  void read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
            void* dst) const override;
  std::optional<UniformValues> uniform(const TensorSpec& tensor) const override;
  bool contains(const std::string& name) const override {
    return own_head_ || name != "lm_head.weight";
  }
  DType stored_dtype(const std::string& name) const override {
    check_present(name);
    return stored_;
  }
  std::uint64_t identity() const override {
    const std::array<std::uint64_t, 3> facts = {kFormatVersion, seed_,
                                                static_cast<std::uint64_t>(stored_)};
    return XXH3_64bits(facts.data(), sizeof(facts));
  }
  std::string describe() const override {
    return fmt::format("dummy weights (seed {}, {})", seed_, name_of(stored_));
  }

 private:
  void check_present(const std::string& name) const {
    if (contains(name)) return;
    throw CheckpointError(fmt::format("{} have no tensor {}", describe(), in_quotes(name)));
  }

  std::uint64_t seed_;
  DType stored_;
  bool own_head_;
};

void DummyWeights::read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
                        void* dst) const {
  check_present(tensor.name);
  const std::int64_t elements = tensor.elements();
  if (first < 0 || count < 0 || first > elements || count > elements - first) {
    throw CheckpointError(
        fmt::format("{}: elements [{}, +{}) of tensor {} were asked for, it has {}", describe(),
                    first, count, in_quotes(tensor.name), elements));
  }
  if (const auto values = uniform(tensor)) {
    fill_uniform(*values, first, count, dst, to);
    return;
  }
  const float constant = kind_of(tensor) == Kind::kOnes ? 1.0f : 0.0f;
  auto* out = static_cast<std::byte*>(dst);
  for (std::int64_t i = 0; i < count; ++i, out += size_of(to)) {
    convert(&constant, DType::kFloat32, out, to, 1);
  }
}

std::optional<UniformValues> DummyWeights::uniform(const TensorSpec& tensor) const {
  if (kind_of(tensor) != Kind::kMatrix) return std::nullopt;
  // random_bits(seed, xxh3(name), index / 4) with what does not change taken out of the loop.
  return UniformValues{
      .key = mix64(mix64(seed_) ^ XXH3_64bits(tensor.name.data(), tensor.name.size())),
      .half_width = kHalfWidth,
      .stored = stored_};
}

}  // namespace

std::unique_ptr<WeightSource> make_dummy_weights(std::uint64_t seed, DType stored, bool own_head) {
  return std::make_unique<DummyWeights>(seed, stored, own_head);
}

}  // namespace zi
