#include "checkpoint/rotary_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;

/// Keys that the reference reads in the object; `finetuned` is in published files, and nobody's.
constexpr ConfigKeys::Names kScalingKeys = {"rope_type",        "type",
                                            "rope_theta",       "partial_rotary_factor",
                                            "factor",           "original_max_position_embeddings",
                                            "low_freq_factor",  "high_freq_factor",
                                            "beta_fast",        "beta_slow",
                                            "mscale",           "mscale_all_dim",
                                            "attention_factor", "truncate",
                                            "finetuned"};

/// What scores and their weights are multiplied by is near 1 in every model.
constexpr double kMostScale = 100;

/// The object without null values, and its type under one name.
json canonical(const ConfigKeys& keys) {
  json all = json::object();
  for (const auto& [name, value] : keys.root().items()) {
    if (!value.is_null()) all[name == "type" ? "rope_type" : name] = value;
  }
  return all;
}

/// Both objects are there: versions of the reference take one or the other.
void expect_same(const ConfigKeys& a, const ConfigKeys& b) {
  const json left = canonical(a);
  const json right = canonical(b);
  if (left == right) return;
  json all = left;
  all.update(right);
  const auto text = [](const json& object, const std::string& name) {
    return object.contains(name) ? object.at(name).dump() : std::string("not there");
  };
  for (const auto& [name, value] : all.items()) {
    const std::string one = text(left, name);
    const std::string other = text(right, name);
    if (left.contains(name) && right.contains(name) && left.at(name) == right.at(name)) continue;
    throw CheckpointError(fmt::format("{}: `{}` is {} and `{}` is {}; remove the wrong one",
                                      a.file(), a.name(name), one, b.name(name), other));
  }
}

/// Newer files may have an object for each type of layer.
ConfigKeys of_all_layers(const ConfigKeys& keys) {
  std::optional<ConfigKeys> found;
  std::string first;
  for (const auto& [name, value] : keys.root().items()) {
    if (!value.is_object()) continue;
    ConfigKeys one = *keys.object(name.c_str());
    if (found && canonical(one) != canonical(*found)) {
      throw CheckpointError(
          fmt::format("{}: `{}` and `{}` differ: rotations by the type of layer are not supported",
                      keys.file(), keys.name(first), keys.name(name)));
    }
    if (!found) {
      found = std::move(one);
      first = name;
    }
  }
  if (!found) return keys;
  for (const auto& [name, value] : keys.root().items()) {
    if (!value.is_object()) keys.fail(name.c_str(), "an object, as beside it");
  }
  return *found;
}

std::optional<ConfigKeys> scaling_object(const ConfigKeys& keys) {
  std::optional<ConfigKeys> found;
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const auto object = keys.object(key);
    if (!object || object->root().empty()) continue;
    ConfigKeys one = of_all_layers(*object);
    one.allow_only(kScalingKeys);
    if (found) {
      expect_same(*found, one);
    } else {
      found = std::move(one);
    }
  }
  return found;
}

/// A key that stands beside the object, in it, or both with one value.
std::optional<double> at_both_levels(const ConfigKeys& outside, const ConfigKeys* inside,
                                     const char* key) {
  const auto outer = outside.optional_positive(key);
  const auto inner = inside == nullptr ? std::nullopt : inside->optional_positive(key);
  if (outer && inner && *outer != *inner) {
    throw CheckpointError(
        fmt::format("{}: `{}` is {} and `{}` is {}: versions of the reference disagree on which "
                    "one counts; remove the wrong one",
                    outside.file(), outside.name(key), *outer, inside->name(key), *inner));
  }
  return inner ? inner : outer;
}

RotaryScaling scaling_of(const ConfigKeys& keys) {
  const auto type = keys.optional_text("rope_type");
  const auto old = keys.optional_text("type");
  if (type && old && *type != *old) {
    throw CheckpointError(fmt::format("{}: `{}` is {} and `{}` is {}; remove the wrong one",
                                      keys.file(), keys.name("rope_type"), *type, keys.name("type"),
                                      *old));
  }
  if (!type && !old) return RotaryScaling::kNone;
  const std::string& name = type ? *type : *old;
  if (name == "default") return RotaryScaling::kNone;
  if (name == "linear") return RotaryScaling::kLinear;
  if (name == "dynamic") return RotaryScaling::kDynamic;
  if (name == "llama3") return RotaryScaling::kLlama3;
  if (name == "yarn") return RotaryScaling::kYarn;
  keys.fail(type ? "rope_type" : "type", "one of default, linear, dynamic, llama3 and yarn");
}

/// Nothing is scaled: no key may say by how much.
void expect_no_scaling(const ConfigKeys& keys) {
  const bool typed = keys.has("rope_type") || keys.has("type");
  for (const char* key : {"factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow",
                          "mscale", "mscale_all_dim", "attention_factor"}) {
    const auto value = keys.optional_positive(key);
    if (!value || (typed && *value == 1)) continue;
    keys.fail(key, typed ? "none: the type `default` scales nothing"
                         : "a `rope_type` beside it, which is missing");
  }
}

double factor_of(const ConfigKeys& keys, RotaryScaling scaling, double positions,
                 std::optional<double> original) {
  const auto given = keys.optional_positive("factor");
  const bool from_positions = scaling == RotaryScaling::kYarn && keys.is_null("factor") && original;
  const double factor = given ? *given : from_positions ? positions / *original : 0;
  if (!(factor >= 1)) keys.fail("factor", "a number of 1 or more");
  return factor;
}

/// What scores are raised by (Peng et al. 2023, section 3.4).
double yarn_factor(const ConfigKeys& keys, double factor) {
  const auto number = [&](const char* key) {
    const auto value = keys.optional_positive(key);
    if (value && (*value > kMostScale || *value < 1 / kMostScale)) {
      keys.fail(key, fmt::format("a number from {} to {}", 1 / kMostScale, kMostScale));
    }
    return value;
  };
  const auto scale = [&](double weight) {
    return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0;
  };
  const auto given = number("attention_factor");
  const auto mscale = number("mscale");
  const auto all = number("mscale_all_dim");
  if (given) return *given;
  return mscale && all ? scale(*mscale) / scale(*all) : scale(1);
}

void read_scaling(const ConfigKeys& outside, const ConfigKeys& keys, ModelConfig& config) {
  Rotary& r = config.rotary;
  r.scaling = scaling_of(keys);
  if (r.scaling == RotaryScaling::kNone) return expect_no_scaling(keys);
  const char* const kOriginal = "original_max_position_embeddings";
  const auto positions = static_cast<double>(config.max_positions);
  const auto original = at_both_levels(outside, &keys, kOriginal);
  if (original && (*original != std::floor(*original) || *original > double{kMostPositions})) {
    (keys.has(kOriginal) ? keys : outside)
        .fail(kOriginal, fmt::format("a whole number from 1 to {}", kMostPositions));
  }
  const double factor = factor_of(keys, r.scaling, positions, original);
  if (r.scaling == RotaryScaling::kDynamic) return;  // it begins beyond `max_positions`
  r.factor = factor;
  if (r.scaling == RotaryScaling::kLinear) return;
  r.original_positions = original.value_or(positions);
  if (r.scaling == RotaryScaling::kLlama3) {
    const auto low = keys.optional_positive("low_freq_factor");
    const auto high = keys.optional_positive("high_freq_factor");
    if (!low) keys.fail("low_freq_factor", "a number above 0");
    if (!high || *high <= *low) keys.fail("high_freq_factor", "a number above low_freq_factor");
    r.low_frequency_factor = *low;
    r.high_frequency_factor = *high;
    return;
  }
  r.beta_fast = keys.positive("beta_fast", r.beta_fast);
  r.beta_slow = keys.positive("beta_slow", r.beta_slow);
  if (r.beta_fast <= r.beta_slow) {
    keys.fail(keys.has("beta_fast") ? "beta_fast" : "beta_slow",
              fmt::format("beta_fast above beta_slow, not {} and {}", r.beta_fast, r.beta_slow));
  }
  r.truncate = keys.flag("truncate", r.truncate);
  r.attention_factor = yarn_factor(keys, r.factor);
}

}  // namespace

void read_rotary(const ConfigKeys& keys, ModelConfig& config) {
  Rotary& r = config.rotary;
  r.elements = config.head_dim;
  if (config.head_dim % 2 != 0) {
    throw CheckpointError(fmt::format("{}: heads of {} elements cannot be rotated in pairs",
                                      keys.file(), config.head_dim));
  }
  const auto scaling = scaling_object(keys);
  const ConfigKeys* const inside = scaling ? &*scaling : nullptr;
  for (const ConfigKeys* level : {&keys, inside}) {
    if (level == nullptr) continue;
    level->refuse("partial_rotary_factor", "rotating a part of each head is", 1.0);
  }
  r.theta = at_both_levels(keys, inside, "rope_theta").value_or(r.theta);
  if (r.theta <= 1) {
    (inside != nullptr && inside->has("rope_theta") ? *inside : keys)
        .fail("rope_theta", "a number above 1");
  }
  if (inside == nullptr) return;
  read_scaling(keys, *inside, config);
  if (r.scaling != RotaryScaling::kYarn) return;
  // The length that it was scaled to, where only the original one stands in the config.
  const double scaled = std::min(r.factor * r.original_positions, double{kMostPositions});
  config.max_positions = std::max(config.max_positions, static_cast<std::int64_t>(scaled));
}

}  // namespace zi
