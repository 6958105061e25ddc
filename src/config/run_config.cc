#include "zero_infer/run_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "config/option_table.h"
#include "config/yaml_level.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw ConfigError(one_line(message)); }

void check_batch(const RunConfig& config, Command command) {
  const std::int64_t largest =
      *std::max_element(config.batch_size.begin(), config.batch_size.end());
  if (config.max_pass_tokens != 0 && config.max_pass_tokens < largest) {
    refuse(fmt::format(
        "--max-pass-tokens {} is less than --batch-size {}: a pass holds one token of each lane; "
        "give --max-pass-tokens {} or more, or a smaller batch",
        config.max_pass_tokens, largest, largest));
  }
  if (config.batch_size.size() > 1 && !config.benchmark && command != Command::kPlan) {
    refuse(fmt::format("--batch-size {} has several sizes, which only --benchmark takes; give one",
                       fmt::join(config.batch_size, ",")));
  }
}

void check_prompts(const RunConfig& config) {
  if (config.benchmark && config.prompts) {
    refuse(
        "--benchmark repeats a few prompts to fill the batch: give --prompt TEXT instead of "
        "--prompts, or neither for its own prompts");
  }
  if (config.chat && config.prompts) {
    refuse(
        "--chat is for --prompt; in a --prompts file write {\"messages\": [{\"role\": \"user\", "
        "\"content\": ..}]}");
  }
  if (config.chat && config.benchmark) {
    refuse("--benchmark measures plain prompts, so --chat has no meaning; remove one of them");
  }
  if (config.benchmark && config.resume) {
    refuse(
        "--benchmark always measures from the start, so --resume has no meaning; remove one of "
        "them");
  }
  if (config.benchmark && std::ranges::find(config.prompt, std::string()) != config.prompt.end()) {
    refuse("--benchmark: a prompt is empty; give at least one character");
  }
  if (config.prompt.empty() && !config.prompts && !config.benchmark) {
    refuse(
        "no prompts: give --prompt TEXT (as often as you like), or --prompts FILE.jsonl (`-` "
        "reads standard input)");
  }
  if (config.logprobs > 0 && !config.output) {
    refuse(
        "--logprobs are written to JSON output only: give --output FILE.jsonl, or `-` for standard "
        "output");
  }
  if (config.trace == "-") refuse("--trace - is not a file; give --trace FILE.json");
}

void check_score(const RunConfig& config) {
  if (!config.score) return;
  if (config.logprobs > 0) {
    refuse(
        "--score reports the log-probability of every prompt token; --logprobs is for new ones: "
        "remove one of them");
  }
  if (config.benchmark) refuse("--score and --benchmark exclude each other; give one of them");
  if (!config.stop.empty()) {
    refuse("--score generates nothing, so --stop has no meaning; remove one of them");
  }
}

}  // namespace

RunConfig load_run_config(const std::filesystem::path& yaml, RunConfig defaults) {
  apply_level(defaults, read_yaml_level(yaml));
  return defaults;
}

void check(const RunConfig& config, Command command) {
  for (const Option& option : option_table()) {
    try {
      option.check(config);
    } catch (const ConfigError& error) {
      refuse(option.key() + ": " + error.what());
    }
    check_rival(config, option);
  }
  if (config.model.empty()) {
    refuse("no model: give --model DIR, or a name such as bigscience/bloom");
  }
  check_batch(config, command);
  if (command == Command::kPlan || command == Command::kServe || command == Command::kChat) {
    return;
  }
  check_prompts(config);
  check_score(config);
  if (config.resume && (!config.output || *config.output == "-")) {
    refuse("--resume needs --output FILE.jsonl, the file whose finished prompts are skipped");
  }
}

}  // namespace zi
