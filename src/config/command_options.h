#pragma once

#include <functional>
#include <string>
#include <vector>

#include "zero_infer/run_config.h"

namespace zi {

/// A flag of a command that is no run (`zero-infer serve`, `zero-infer plan` ..): no key of a YAML
/// file.
struct CommandOption {
  std::string flag;  // without `--`
  bool is_switch = false;
  std::string value_name;  // in --help; empty for a switch
  std::string help;
  /// Takes what was written; throws ConfigError without the flag's name.
  std::function<void(CommandLine&, const std::string&)> read;
};

/// The flags of this command alone, in the order of its --help; none for a run.
const std::vector<CommandOption>& options_of(Command command);

}  // namespace zi
