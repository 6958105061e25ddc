#include "plan/plan_command.h"

#include "zero_infer/error.h"

namespace zi {

std::string plan_text(const RunConfig&, const PlanOptions&) {
  throw ConfigError("zero-infer plan is not there yet");
}

}  // namespace zi
