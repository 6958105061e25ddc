#pragma once

#include <string>
#include <vector>

#include "zero_infer/world.h"

namespace zi {

/// Something that must be the same on every rank.
struct Agreed {
  std::string name;   // for the message: a flag, `the model's weights`
  std::string value;  // as text
};

/// Collective. Throws ConfigError (on the first rank that differs; PeerError elsewhere) with the
/// first name whose value differs from rank 0's. Every rank gives the same names.
void check_agreement(World& world, const std::vector<Agreed>& mine);

}  // namespace zi
