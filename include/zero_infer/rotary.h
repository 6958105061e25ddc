#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace zi {

/// How the frequencies of rotary positions (RoPE, Su et al. 2021) are scaled for long sequences, as
/// `rope_scaling` or `rope_parameters` of a config.json says.
enum class RotaryScaling {
  kNone,
  kLinear,   // all positions divided by `factor`
  kDynamic,  // changes nothing up to the model's own length, beyond which no sequence goes here
  kLlama3,   // low frequencies divided, high ones kept, those between blended
  kYarn,     // the same by the number of rotations (Peng et al. 2023), and larger scores
};

/// Rotary positions of a model; members without meaning for a scaling keep their defaults.
struct Rotary {
  std::int64_t elements = 0;  // of a head that are rotated, even; 0: the model has none
  double theta = 10000;       // pair i turns by position * theta^(-2 i / elements)
  RotaryScaling scaling = RotaryScaling::kNone;
  double factor = 1;
  double original_positions = 0;     // with which the model was trained first (llama3, yarn)
  double low_frequency_factor = 1;   // llama3
  double high_frequency_factor = 4;  // llama3
  double beta_fast = 32;             // yarn
  double beta_slow = 1;              // yarn
  bool truncate = true;              // yarn: the borders between pairs are whole numbers
  double attention_factor = 1;       // yarn: of sines and cosines

  /// The (elements / 2) frequencies in float32, as Hugging Face transformers computes them.
  std::vector<float> frequencies() const;
  /// All members as text; equal where the members are.
  std::string text() const;
  bool operator==(const Rotary&) const = default;
};

}  // namespace zi
