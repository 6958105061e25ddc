#include "zero_infer/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "zero_infer/error.h"
#include "zero_infer/logit_changes.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// Sums of as many as there are tokens stay finite.
constexpr float kMostChange = 1e30f;

/// Larger logits first, lower ids first among equals.
struct BetterId {
  const float* logits;
  bool operator()(std::int32_t a, std::int32_t b) const {
    const float x = logits[a];
    const float y = logits[b];
    return x > y || (x == y && a < b);
  }
};

/// The largest value; NaNs are skipped. Independent lanes let the compiler use vector registers.
float max_of(std::span<const float> x) {
  constexpr std::size_t kLanes = 32;
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, kMinusInfinity);
  std::size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
    }
  }
  for (; i < x.size(); ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
  return *std::max_element(lanes, lanes + kLanes);
}

std::int32_t first_of(std::span<const float> x, float value) {
  return static_cast<std::int32_t>(std::find(x.begin(), x.end(), value) - x.begin());
}

/// log(sum(exp(x))). NaN, +infinity and a row of nothing but -infinity all make it NaN.
double log_sum_exp(std::span<const float> x, float largest) {
  double sum = 0;
  for (const float value : x) sum += static_cast<double>(std::exp(value - largest));
  return static_cast<double>(largest) + std::log(sum);
}

void apply_repetition_penalty(std::span<const std::int32_t> history, float penalty,
                              std::span<const float> raw, std::span<float> logits) {
  for (const std::int32_t id : history) {
    if (id < 0 || static_cast<std::size_t>(id) >= raw.size()) continue;
    const auto i = static_cast<std::size_t>(id);
    // From the raw value: an id that is in the history twice is changed once.
    logits[i] = raw[i] > 0 ? raw[i] / penalty : raw[i] * penalty;
  }
}

/// The logits that the row is drawn by, where they are not the raw ones.
std::vector<float> changed_logits(std::span<const float> raw, const SampleRow& row) {
  std::vector<float> changed(raw.begin(), raw.end());
  thread_local LogitChanges made;  // keeps its memory from call to call
  const auto changes =
      changes_logits(row) ? made.of(row, raw.size()) : std::span<const LogitChange>{};
  for (const LogitChange& change : changes) {
    changed[static_cast<std::size_t>(change.id)] += change.bias;
  }
  if (penalises_repetition(row)) {
    std::vector<float> biased;
    if (!changes.empty()) biased = changed;
    apply_repetition_penalty(row.history, row.repetition_penalty, biased.empty() ? raw : biased,
                             changed);
  }
  for (const LogitChange& change : changes) {
    changed[static_cast<std::size_t>(change.id)] -= change.penalty;
  }
  return changed;
}

/// Cuts `ids` to the smallest set of best ids whose weights reach `p` of their sum. Sorts no more
/// of them than needed: a nucleus is mostly far smaller than the vocabulary.
template <typename Weight>
void keep_nucleus(std::vector<std::int32_t>& ids, float p, const BetterId& better, Weight weight) {
  double total = 0;
  for (const std::int32_t id : ids) total += weight(id);
  const double enough = static_cast<double>(p) * total;
  double mass = 0;
  std::size_t sorted = 0;
  for (std::size_t until = 256; sorted < ids.size(); until *= 8) {
    until = std::min(until, ids.size());
    const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(sorted);
    const auto end = ids.begin() + static_cast<std::ptrdiff_t>(until);
    if (until < ids.size()) std::nth_element(begin, end, ids.end(), better);
    std::sort(begin, end, better);
    for (; sorted < until; ++sorted) {
      mass += weight(ids[sorted]);
      if (mass >= enough) {
        ids.resize(sorted + 1);
        return;
      }
    }
  }
}

/// One draw from `logits` (after bias and penalties), whose largest value is `largest`.
std::int32_t draw(std::span<const float> logits, float largest, const SampleRow& row) {
  std::vector<std::int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const BetterId better{logits.data()};
  const auto weight = [&](std::int32_t id) {
    const float x = logits[static_cast<std::size_t>(id)] - largest;
    return static_cast<double>(std::exp(x / row.temperature));
  };
  if (row.min_p > 0) {
    const float least = least_exponent(row);
    std::erase_if(ids, [&](std::int32_t id) {
      return (logits[static_cast<std::size_t>(id)] - largest) / row.temperature < least;
    });
  }
  if (row.top_k > 0 && static_cast<std::size_t>(row.top_k) < ids.size()) {
    std::nth_element(ids.begin(), ids.begin() + (row.top_k - 1), ids.end(), better);
    ids.resize(static_cast<std::size_t>(row.top_k));
  }
  if (row.top_p < 1) keep_nucleus(ids, row.top_p, better, weight);
  // nth_element's order is the library's choice. By id, so that no backend needs to sort a large
  // nucleus by weight in order to draw the same.
  if (!std::is_sorted(ids.begin(), ids.end())) std::sort(ids.begin(), ids.end());

  std::vector<double> cumulative(ids.size());
  double mass = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) cumulative[i] = mass += weight(ids[i]);
  const double point = uniform01(random_bits(row.seed, row.sequence, row.position)) * mass;
  // The first whose sum exceeds the point has a weight above 0; `point < mass` but for rounding.
  auto hit = std::upper_bound(cumulative.begin(), cumulative.end(), point);
  if (hit == cumulative.end()) hit = std::lower_bound(cumulative.begin(), cumulative.end(), mass);
  return ids[static_cast<std::size_t>(hit - cumulative.begin())];
}

void report_best(std::span<const float> logits, double log_sum, std::span<std::int32_t> ids,
                 std::span<float> logprobs) {
  if (ids.size() != logprobs.size()) {
    throw Error(fmt::format("sample_row: room for {} best ids but for {} log-probabilities",
                            ids.size(), logprobs.size()));
  }
  if (ids.empty()) return;
  // Few ids are asked for, and fewer and fewer of the others replace one: most are looked at once.
  std::size_t count = 0;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    const auto worse = [&](std::size_t at) {
      return logits[static_cast<std::size_t>(ids[at])] < logits[id];
    };
    if (count == ids.size() && !worse(count - 1)) continue;
    std::size_t at = count < ids.size() ? count++ : count - 1;
    for (; at > 0 && worse(at - 1); --at) ids[at] = ids[at - 1];
    ids[at] = static_cast<std::int32_t>(id);
  }
  for (std::size_t i = 0; i < count; ++i) {
    logprobs[i] = static_cast<float>(logits[static_cast<std::size_t>(ids[i])] - log_sum);
  }
  std::fill(ids.begin() + static_cast<std::ptrdiff_t>(count), ids.end(), -1);
  std::fill(logprobs.begin() + static_cast<std::ptrdiff_t>(count), logprobs.end(), kMinusInfinity);
}

}  // namespace

void check_sample_row(const SampleRow& row, std::size_t vocabulary) {
  if (row.target >= 0 && static_cast<std::size_t>(row.target) >= vocabulary) {
    throw Error(fmt::format("sample: the target id {} is not below the vocabulary's {} ids",
                            row.target, vocabulary));
  }
  if (row.new_tokens > row.history.size()) {
    throw Error(fmt::format("sample: {} new tokens are more than the {} of the history",
                            row.new_tokens, row.history.size()));
  }
  if (!(std::abs(row.presence_penalty) <= kMostChange) ||
      !(std::abs(row.frequency_penalty) <= kMostChange)) {
    throw Error(
        fmt::format("sample: a presence penalty of {} and a frequency penalty of {}: numbers up to "
                    "{} are taken",
                    row.presence_penalty, row.frequency_penalty, kMostChange));
  }
  for (const LogitBias& bias : row.bias) {
    if (std::abs(bias.value) <= kMostChange || bias.value == kMinusInfinity) continue;
    throw Error(fmt::format("sample: a bias of {} for the id {}: numbers up to {} are taken",
                            bias.value, bias.id, kMostChange));
  }
}

Sampled sample_row(std::span<const float> logits, const SampleRow& row,
                   std::span<std::int32_t> top_ids, std::span<float> top_logprobs) {
  if (logits.empty()) throw Error("sample_row: a row of logits without a single one");
  check_sample_row(row, logits.size());
  const float largest = max_of(logits);
  const double log_sum = log_sum_exp(logits, largest);
  if (!std::isfinite(log_sum)) {
    std::ranges::fill(top_ids, kNoId);
    std::ranges::fill(top_logprobs, kMinusInfinity);
    return {kNoId, std::numeric_limits<float>::quiet_NaN()};
  }
  report_best(logits, log_sum, top_ids, top_logprobs);

  Sampled sampled;
  if (row.target >= 0) {
    sampled.id = row.target;
  } else if (!changes_logits(row) && !penalises_repetition(row)) {
    sampled.id = row.temperature > 0 ? draw(logits, largest, row) : first_of(logits, largest);
  } else {
    const std::vector<float> changed = changed_logits(logits, row);
    const float best = max_of(changed);
    if (best == kMinusInfinity && changes_logits(row)) return {kNoId, kMinusInfinity};
    // A penalty may take the logits beyond float32: then nothing but the best is left.
    const bool draws = row.temperature > 0 && std::isfinite(best);
    sampled.id = draws ? draw(changed, best, row) : first_of(changed, best);
  }
  sampled.logprob = static_cast<float>(logits[static_cast<std::size_t>(sampled.id)] - log_sum);
  return sampled;
}

}  // namespace zi
