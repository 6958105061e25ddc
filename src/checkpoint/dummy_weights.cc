#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "json_file.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

/// Counted up whenever the values change: shard files written from older ones must not be reused.
constexpr std::uint64_t kFormatVersion = 1;
/// One draw of 64 bits makes this many elements of 16 bits.
constexpr std::int64_t kPerDraw = 4;
/// Elements made at a time: they stay in the first-level cache.
constexpr std::int64_t kPieceElements = 2048;
/// Half the width of the uniform distribution whose standard deviation is 0.02: 0.02 * sqrt(3).
constexpr float kHalfWidth = 0.034641016f;

enum class Kind { kMatrix, kOnes, kZeros };

Kind kind_of(std::string_view name) {
  if (name.ends_with("layernorm.weight") || name.ends_with("ln_f.weight")) return Kind::kOnes;
  return name.ends_with(".bias") ? Kind::kZeros : Kind::kMatrix;
}

class DummyWeights final : public WeightSource {
 public:
  DummyWeights(std::uint64_t seed, DType stored) : seed_(seed), stored_(stored) {}

  void read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
            void* dst) const override;
  bool contains(const std::string& name) const override { return name != "lm_head.weight"; }
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
};

/// Elements [draw * 4, draw * 4 + n) of the tensor whose key is `key`, n rounded up to whole draws.
void draw_uniform(std::uint64_t key, std::uint64_t draw, std::int64_t n, float* values) {
  constexpr float kStep = kHalfWidth * 0x1p-15f;
  for (std::int64_t i = 0; i < n; i += kPerDraw) {
    const std::uint64_t bits = mix64(key ^ draw++);
    for (int j = 0; j < kPerDraw; ++j) {
      // The middle of one of 2^16 equal steps: no zero, no bias, -x as likely as x.
      const auto step = static_cast<int>(bits >> (16 * j) & 0xffffu) - 0x8000;
      values[i + j] = (static_cast<float>(step) + 0.5f) * kStep;
    }
  }
}

void DummyWeights::read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, DType to,
                        void* dst) const {
  check_present(tensor.name);
  const std::int64_t elements = tensor.elements();
  if (first < 0 || count < 0 || first > elements || count > elements - first) {
    throw CheckpointError(
        fmt::format("{}: elements [{}, +{}) of tensor {} were asked for, it has {}", describe(),
                    first, count, in_quotes(tensor.name), elements));
  }
  const Kind kind = kind_of(tensor.name);
  // random_bits(seed, xxh3(name), index / 4) with what does not change taken out of the loop.
  const std::uint64_t key =
      mix64(mix64(seed_) ^ XXH3_64bits(tensor.name.data(), tensor.name.size()));
  alignas(64) std::array<float, kPieceElements> values;
  alignas(64) std::array<std::uint16_t, kPieceElements> rounded;
  if (kind != Kind::kMatrix) values.fill(kind == Kind::kOnes ? 1.0f : 0.0f);
  auto* out = static_cast<std::byte*>(dst);
  while (count > 0) {
    const std::int64_t skip = kind == Kind::kMatrix ? first % kPerDraw : 0;
    const std::int64_t n = std::min(count, kPieceElements - skip);
    if (kind == Kind::kMatrix) {
      draw_uniform(key, static_cast<std::uint64_t>(first / kPerDraw), skip + n, values.data());
    }
    const float* from = values.data() + skip;
    const auto size = static_cast<std::size_t>(n);
    if (stored_ == DType::kFloat32 || stored_ == to) {
      convert(from, DType::kFloat32, out, to, size);
    } else {  // as a checkpoint of the stored type would give them
      convert(from, DType::kFloat32, rounded.data(), stored_, size);
      convert(rounded.data(), stored_, out, to, size);
    }
    out += size * size_of(to);
    first += n;
    count -= n;
  }
}

}  // namespace

std::unique_ptr<WeightSource> make_dummy_weights(std::uint64_t seed, DType stored) {
  return std::make_unique<DummyWeights>(seed, stored);
}

}  // namespace zi
