#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "zero_infer/ops.h"

namespace zi {

/// What a row's bias and its penalties for new tokens do to one logit x. The repetition penalty
/// stands between them: x + bias, then that penalty if the id is in the history, then - penalty.
struct LogitChange {
  std::int32_t id = 0;
  float bias = 0;
  float penalty = 0;  // presence_penalty + frequency_penalty * how often the id came
};

/// Whether the row has bias, or penalties for new tokens that it has. Where it has a target, they
/// do not matter.
bool changes_logits(const SampleRow& row);

/// Whether the repetition penalty matters.
bool penalises_repetition(const SampleRow& row);

/// Makes the changes of one row after the other, in a time that does not depend on the vocabulary.
/// Every backend takes them from here, so that all draw by the same logits.
class LogitChanges {
 public:
  /// The changes of a row for which changes_logits: each id below `vocabulary` once. Valid until
  /// the next call.
  std::span<const LogitChange> of(const SampleRow& row, std::size_t vocabulary);

 private:
  /// Null where the id is not one of the vocabulary.
  LogitChange* change_of(std::int32_t id, std::size_t vocabulary);

  std::vector<LogitChange> changes_;
  std::vector<std::int32_t> places_;  // of an id's change; -1: it has none
};

}  // namespace zi
