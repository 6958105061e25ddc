#include "zero_infer/logit_changes.h"

#include <algorithm>

namespace zi {
namespace {

bool penalises_new_tokens(const SampleRow& row) {
  return row.new_tokens > 0 && (row.presence_penalty != 0 || row.frequency_penalty != 0);
}

}  // namespace

bool changes_logits(const SampleRow& row) {
  return row.target < 0 && (!row.bias.empty() || penalises_new_tokens(row));
}

bool penalises_repetition(const SampleRow& row) {
  return row.target < 0 && row.repetition_penalty != 1 && !row.history.empty();
}

std::span<const LogitChange> LogitChanges::of(const SampleRow& row, std::size_t vocabulary) {
  for (const LogitChange& change : changes_) places_[static_cast<std::size_t>(change.id)] = -1;
  changes_.clear();
  places_.resize(std::max(places_.size(), vocabulary), -1);
  for (const LogitBias& bias : row.bias) {
    if (LogitChange* change = change_of(bias.id, vocabulary)) change->bias += bias.value;
  }
  if (penalises_new_tokens(row)) {
    // Counted first: a sum of so many penalties would be rounded as often.
    for (const std::int32_t id : row.history.last(row.new_tokens)) {
      if (LogitChange* change = change_of(id, vocabulary)) change->penalty += 1;
    }
    for (LogitChange& change : changes_) {
      if (change.penalty == 0) continue;
      change.penalty = row.presence_penalty + row.frequency_penalty * change.penalty;
    }
  }
  return changes_;
}

LogitChange* LogitChanges::change_of(std::int32_t id, std::size_t vocabulary) {
  if (id < 0 || static_cast<std::size_t>(id) >= vocabulary) return nullptr;
  std::int32_t& place = places_[static_cast<std::size_t>(id)];
  if (place < 0) {
    place = static_cast<std::int32_t>(changes_.size());
    changes_.push_back({.id = id});
  }
  return &changes_[static_cast<std::size_t>(place)];
}

}  // namespace zi
