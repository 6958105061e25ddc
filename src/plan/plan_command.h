#pragma once

#include <string>

#include "zero_infer/run_config.h"

namespace zi {

/// `zero-infer plan`: what fits where and how fast it can be, as a table for people or one JSON
/// object. Loads no weights and starts no MPI. Throws ConfigError with one line for an unknown GPU
/// or a limits file that is none, CheckpointError for a model that is not there, and MemoryError
/// with the table for a plan that does not fit.
std::string plan_text(const RunConfig& config, const PlanOptions& options);

}  // namespace zi
