#pragma once

#include <string>
#include <vector>

#include "engine/open_model.h"
#include "text/tokenizer.h"
#include "zero_infer/rank_group.h"

namespace zi {

/// Something that must be the same on every rank.
struct Agreed {
  std::string name;   // for the message: a flag, `the model's weights`
  std::string value;  // as text
};

/// What must be the same on all ranks of the model itself, whatever the run asks of it: every value
/// of its config, the weights (see WeightSource::content_identity; it reads) and the tokenizer's
/// files. Where they lie and when they were written may differ. Throws IoError.
std::vector<Agreed> model_agreement(const OpenModel& open, const Tokenizer& tokenizer);

/// Collective over the group. Throws ConfigError (on the first rank that differs; PeerError
/// elsewhere) with the first name whose value differs from rank 0's. Every rank gives the same
/// names.
void check_agreement(RankGroup& ranks, const std::vector<Agreed>& mine);

}  // namespace zi
