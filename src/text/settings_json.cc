#include "text/settings_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/printable_text.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;

/// A sampler divides by them, in float32.
constexpr double kLeastFactor = 1e-30;
constexpr double kMostFactor = 1e30;
constexpr double kMostPenalty = 1e4;  // far beyond what any logits reach
constexpr std::size_t kMostStops = 64;
constexpr std::size_t kMostStopBytes = 4096;
constexpr std::size_t kMostBiases = 4096;

/// The member, or null where it is left out or null.
const json* find(const json& object, const char* key) {
  const auto at = object.find(key);
  return at == object.end() || at->is_null() ? nullptr : &*at;
}

std::optional<float> read_real(const json& object, const char* key, double least, double most,
                               bool or_zero) {
  const json* const value = find(object, key);
  if (value == nullptr) return std::nullopt;
  const double x = value->is_number() ? value->get<double>() : std::nan("");
  if ((or_zero && x == 0) || (x >= least && x <= most)) return static_cast<float>(x);
  throw PromptError(fmt::format("`{}` is not a number from {}{:g} to {:g}", key,
                                or_zero ? "0 or " : "", least, most));
}

std::optional<std::vector<std::string>> read_stops(const json& object) {
  const json* const value = find(object, "stop");
  if (value == nullptr) return std::nullopt;
  const json list = value->is_array() ? *value : json::array({*value});
  std::vector<std::string> stops;
  for (const json& stop : list) {
    if (!stop.is_string()) throw PromptError("`stop` is neither a text nor a list of texts");
    if (stop.get_ref<const std::string&>().empty()) {
      throw PromptError("`stop` holds an empty text, which would end every text");
    }
    stops.push_back(stop.get<std::string>());
    if (stops.size() > kMostStops || stops.back().size() > kMostStopBytes) {
      throw PromptError(fmt::format("`stop` has more than {} texts, or one of more than {} bytes",
                                    kMostStops, kMostStopBytes));
    }
  }
  return stops;
}

std::vector<std::pair<std::int32_t, float>> read_biases(const json& object) {
  const json* const value = find(object, "logit_bias");
  if (value == nullptr) return {};
  if (!value->is_object()) throw PromptError("`logit_bias` is not an object {\"token id\": bias}");
  if (value->size() > kMostBiases) {
    throw PromptError(fmt::format("`logit_bias` has more than {} tokens", kMostBiases));
  }
  std::vector<std::pair<std::int32_t, float>> biases;
  for (const auto& [key, bias] : value->items()) {
    std::int32_t id = -1;
    const auto read = std::from_chars(key.data(), key.data() + key.size(), id);
    const bool whole = read.ec == std::errc() && read.ptr == key.data() + key.size();
    if (!whole || id < 0 || key != std::to_string(id)) {  // "05" would be a second "5"
      throw PromptError(fmt::format("`logit_bias`: {} is no token id", in_quotes(key)));
    }
    if (!bias.is_number() || !(std::abs(bias.get<double>()) <= 100)) {
      throw PromptError(
          fmt::format("`logit_bias`: the bias of token {} is not a number from -100 to 100", id));
    }
    biases.emplace_back(id, bias.get<float>());
  }
  return biases;
}

}  // namespace

std::optional<std::int64_t> read_count(const json& object, const char* key, std::int64_t least,
                                       std::int64_t most) {
  const json* const value = find(object, key);
  if (value == nullptr) return std::nullopt;
  // nlohmann::json compares numbers without a sign with others as if they had one.
  constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  const bool fits = value->is_number_integer() &&
                    !(value->is_number_unsigned() && value->get<std::uint64_t>() > kMost);
  if (!fits || value->get<std::int64_t>() < least || value->get<std::int64_t>() > most) {
    throw PromptError(most == kAnyCount
                          ? fmt::format("`{}` is not an integer of at least {}", key, least)
                          : fmt::format("`{}` is not an integer from {} to {}", key, least, most));
  }
  return value->get<std::int64_t>();
}

void read_settings(const json& object, OwnSettings& s) {
  s.temperature = read_real(object, "temperature", kLeastFactor, kMostFactor, true);
  if (const auto k = read_count(object, "top_k", -1, std::numeric_limits<std::int32_t>::max())) {
    s.top_k = static_cast<int>(std::max<std::int64_t>(*k, 0));  // -1: all, as elsewhere
  }
  s.top_p = read_real(object, "top_p", kLeastFactor, 1, false);
  s.min_p = read_real(object, "min_p", 0, 1, false);
  s.repetition_penalty = read_real(object, "repetition_penalty", kLeastFactor, kMostFactor, false);
  s.presence_penalty = read_real(object, "presence_penalty", -kMostPenalty, kMostPenalty, false);
  s.frequency_penalty = read_real(object, "frequency_penalty", -kMostPenalty, kMostPenalty, false);
  s.logit_bias = read_biases(object);
  if (const auto seed = read_count(object, "seed", std::numeric_limits<std::int64_t>::min(),
                                   std::numeric_limits<std::int64_t>::max())) {
    s.seed = static_cast<std::uint64_t>(*seed);
    s.draw_number = 0;
  }
  s.stop = read_stops(object);
  if (const json* const ignore = find(object, "ignore_eos")) {
    if (!ignore->is_boolean()) throw PromptError("`ignore_eos` is not true or false");
    s.ignore_eos = ignore->get<bool>();
  }
}

const std::vector<std::string>& setting_keys() {
  static const std::vector<std::string> keys = {
      "temperature",       "top_k",      "top_p", "min_p", "repetition_penalty", "presence_penalty",
      "frequency_penalty", "logit_bias", "seed",  "stop",  "ignore_eos"};
  return keys;
}

}  // namespace zi
