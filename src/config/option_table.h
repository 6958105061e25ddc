#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "zero_infer/run_config.h"

namespace zi {

/// What a user wrote for one option: one text, or several for a list.
using Values = std::vector<std::string>;

/// How often a flag may be given, and what its YAML key holds.
enum class Arity {
  kSwitch,     // no value or `=true|=false`; in YAML true or false
  kSingle,     // once, with a value; in YAML a scalar
  kCommaList,  // once, `1,8,16`; in YAML also a list
  kList,       // any number of times; in YAML a scalar or a list
};

/// One option: all that the YAML reader, the command line, --help and check() know of it.
struct Option {
  std::string group;  // heading in --help
  std::string flag;   // without `--`
  Arity arity = Arity::kSingle;
  std::string value_name;    // in --help: `FILE`; empty for a switch
  std::string help;          // one or more lines
  std::string default_text;  // in --help; empty: nothing to say
  std::string rival;         // the flag that answers the same question, or empty
  bool input_path = false;   // `./x` and `../x` in a YAML file count from its folder
  bool job_only = false;     // it is about a job's prompts or results: a server has no use for it

  /// Reads what was written into its member; throws ConfigError without the option's name.
  std::function<void(RunConfig&, const Values&)> read;
  /// Checks the range of its member; throws ConfigError without the option's name.
  std::function<void(const RunConfig&)> check;
  std::function<bool(const RunConfig&)> is_set;  // differs from the default
  std::function<void(RunConfig&)> reset;         // back to the default

  /// The YAML key: `flag` with `_` for `-`.
  std::string key() const;
};

/// One option as one level (a YAML file, or the flags) gives it.
struct Given {
  const Option* option = nullptr;
  Values values;
  std::string where;  // in front of messages: `demo.yaml:12: seed` or `--seed`
};

/// Every option, in the order of --help.
const std::vector<Option>& option_table();

/// Puts one level over what lower levels said. An option replaces what a lower level said for
/// itself and for its rival. Throws ConfigError (`where: message`, one line) for a value that
/// cannot be read or is out of range, and for two rivals on the same level.
void apply_level(RunConfig& config, const std::vector<Given>& level);

/// Throws ConfigError when `option` and its rival are both set.
void check_rival(const RunConfig& config, const Option& option);

/// The message on one line, short enough for a terminal: control characters become spaces.
std::string one_line(std::string_view message);

}  // namespace zi
