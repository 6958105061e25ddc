#pragma once

#include <string>

#include "plan/machine_limits.h"

namespace zi {

/// The limits as a table for people, in lines.
std::string limits_text(const MachineLimits& limits);

}  // namespace zi
