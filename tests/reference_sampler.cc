#include "reference_sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "zero_infer/random.h"

namespace zi::test {
namespace {

/// All ids, best first, the lower one first among equals.
std::vector<std::size_t> ranked(std::span<const float> logits) {
  std::vector<std::size_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0u);
  std::ranges::stable_sort(ids,
                           [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  return ids;
}

/// The logits that the row is drawn by. They are float32, as the raw ones are.
std::vector<float> changed_logits(std::span<const float> logits, const SampleRow& row) {
  std::vector<float> changed(logits.begin(), logits.end());
  std::map<std::int32_t, float> bias_of;
  for (const LogitBias& bias : row.bias) bias_of[bias.id] += bias.value;
  std::map<std::int32_t, int> count_of;
  for (const std::int32_t id : row.history.last(row.new_tokens)) ++count_of[id];
  const std::set<std::int32_t> in_history(row.history.begin(), row.history.end());
  for (std::int32_t id = 0; static_cast<std::size_t>(id) < changed.size(); ++id) {
    float& x = changed[static_cast<std::size_t>(id)];
    if (bias_of.contains(id)) x += bias_of[id];
    if (in_history.contains(id)) {
      x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
    }
    if (count_of.contains(id)) {
      x -= row.presence_penalty + row.frequency_penalty * static_cast<float>(count_of[id]);
    }
  }
  return changed;
}

std::size_t drawn_of(std::span<const float> logits, const SampleRow& row) {
  std::vector<std::size_t> kept = ranked(logits);
  const double best = logits[kept.front()];
  std::vector<double> weights;
  for (const float x : logits) weights.push_back(std::exp((x - best) / row.temperature));

  std::erase_if(kept, [&](std::size_t id) { return weights[id] < row.min_p; });
  if (row.top_k > 0 && static_cast<std::size_t>(row.top_k) < kept.size()) {
    kept.resize(static_cast<std::size_t>(row.top_k));
  }
  const auto mass = [&](std::size_t count) {
    return std::accumulate(kept.begin(), kept.begin() + static_cast<std::ptrdiff_t>(count), 0.0,
                           [&](double sum, std::size_t id) { return sum + weights[id]; });
  };
  if (row.top_p < 1) {
    const double enough = static_cast<double>(row.top_p) * mass(kept.size());
    std::size_t count = 1;
    for (double sum = mass(1); sum < enough && count < kept.size(); ++count) {
      sum += weights[kept[count]];
    }
    kept.resize(count);
  }
  std::ranges::sort(kept);
  const double point =
      uniform01(random_bits(row.seed, row.sequence, row.position)) * mass(kept.size());
  double sum = 0;
  for (const std::size_t id : kept) {
    sum += weights[id];
    if (sum > point) return id;
  }
  return kept.back();
}

}  // namespace

Sampled naive_sample_row(std::span<const float> logits, const SampleRow& row,
                         std::span<std::int32_t> top_ids, std::span<float> top_logprobs) {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - largest);
  const auto logprob = [&](std::size_t id) {
    return static_cast<float>(logits[id] - largest - std::log(sum));
  };
  if (!top_ids.empty()) {
    const std::vector<std::size_t> best = ranked(logits);
    for (std::size_t k = 0; k < top_ids.size(); ++k) {
      const bool there = k < best.size();
      top_ids[k] = there ? static_cast<std::int32_t>(best[k]) : kNoId;
      top_logprobs[k] = there ? logprob(best[k]) : -std::numeric_limits<float>::infinity();
    }
  }
  if (row.target >= 0) return {row.target, logprob(static_cast<std::size_t>(row.target))};
  const std::vector<float> changed = changed_logits(logits, row);
  const std::size_t id = row.temperature > 0 ? drawn_of(changed, row) : ranked(changed).front();
  return {static_cast<std::int32_t>(id), logprob(id)};
}

}  // namespace zi::test
