#include "zero_infer/rotary.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace zi {
namespace {

/// Of a pair's frequency, whose wave length in positions is 2 pi / frequency.
float llama3(const Rotary& r, float frequency) {
  const double wave_length = 2 * std::numbers::pi / frequency;
  if (wave_length < r.original_positions / r.high_frequency_factor) return frequency;
  const auto divided = static_cast<float>(frequency / r.factor);
  if (wave_length > r.original_positions / r.low_frequency_factor) return divided;
  const double smooth = (r.original_positions / wave_length - r.low_frequency_factor) /
                        (r.high_frequency_factor - r.low_frequency_factor);
  return static_cast<float>((1 - smooth) * divided + smooth * frequency);
}

/// The pair, not a whole number, that turns so often over the original positions.
double pair_of_rotations(const Rotary& r, double rotations) {
  return static_cast<double>(r.elements) *
         std::log(r.original_positions / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(r.theta));
}

float yarn(const Rotary& r, double pair, double frequency) {
  double low = pair_of_rotations(r, r.beta_fast);
  double high = pair_of_rotations(r, r.beta_slow);
  if (r.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(r.elements - 1));
  if (low == high) high += 0.001;
  const double divided_share = std::clamp((pair - low) / (high - low), 0.0, 1.0);
  return static_cast<float>(frequency / r.factor * divided_share + frequency * (1 - divided_share));
}

}  // namespace

std::vector<float> Rotary::frequencies() const {
  std::vector<float> out;
  for (std::int64_t pair = 0; pair < elements / 2; ++pair) {
    const double exponent = 2 * static_cast<double>(pair) / static_cast<double>(elements);
    // In float32 from here on, like the reference.
    const float frequency = 1.0f / static_cast<float>(std::pow(theta, exponent));
    switch (scaling) {
      case RotaryScaling::kNone:
      case RotaryScaling::kDynamic:
        out.push_back(frequency);
        break;
      case RotaryScaling::kLinear:
        out.push_back(static_cast<float>(frequency / factor));
        break;
      case RotaryScaling::kLlama3:
        out.push_back(llama3(*this, frequency));
        break;
      case RotaryScaling::kYarn:
        out.push_back(yarn(*this, static_cast<double>(pair), frequency));
        break;
    }
  }
  return out;
}

std::string Rotary::text() const {
  // This does not compile when a member is added: print it below.
  const auto& [elements_, theta_, scaling_, factor_, original_positions_, low_frequency_factor_,
               high_frequency_factor_, beta_fast_, beta_slow_, truncate_, attention_factor_] =
      *this;
  return fmt::format("{} {} {} {} {} {} {} {} {} {} {}", elements_, theta_,
                     static_cast<int>(scaling_), factor_, original_positions_,
                     low_frequency_factor_, high_frequency_factor_, beta_fast_, beta_slow_,
                     truncate_, attention_factor_);
}

}  // namespace zi
