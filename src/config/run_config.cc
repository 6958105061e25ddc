#include "zero_infer/run_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <system_error>

#include "base/suggestion.h"
#include "base/system_error.h"
#include "config/option_table.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

std::string read_file(const std::filesystem::path& path) {
  const auto fail = [&path](const std::string& reason) {
    return ConfigError(one_line(fmt::format("cannot read --config {}: {}", path.string(), reason)));
  };
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) throw fail("it is a directory");
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw fail(system_message(errno));
  std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) throw fail("the read failed");
  return content;
}

/// Turns the nodes of one YAML file into what `apply_level` takes.
class YamlLevel {
 public:
  explicit YamlLevel(const std::filesystem::path& path) : path_(path) {}

  std::vector<Given> parse() const {
    std::vector<YAML::Node> documents;
    try {
      documents = YAML::LoadAll(read_file(path_));
    } catch (const YAML::Exception& error) {
      throw at(error.mark, error.msg);
    }
    if (documents.empty() || (documents.size() == 1 && !documents[0].IsMap())) {
      throw ConfigError(one_line(fmt::format(
          "{}: not a YAML map; write lines such as `max_new_tokens: 64`", path_.string())));
    }
    if (documents.size() > 1) {
      throw at(documents[1].Mark(), "a second YAML document; keep all keys in the first");
    }
    std::vector<Given> level;
    std::map<std::string, int> lines;  // yaml-cpp keeps repeated keys: find them here
    for (const auto& entry : documents[0]) {
      const YAML::Mark mark = entry.first.Mark();
      if (!entry.first.IsScalar()) throw at(mark, "a key must be a name, not a list or a map");
      const std::string& key = entry.first.Scalar();
      const Option& option = find(key, mark);
      const auto [first, is_new] = lines.emplace(key, mark.line + 1);
      if (!is_new) {
        throw at(mark,
                 fmt::format("key `{}` is repeated; line {} has it already", key, first->second));
      }
      const YAML::Mark where = mark_of(entry.second, mark);
      level.push_back({&option, values(option, entry.second, where), place(where) + ": " + key});
    }
    return level;
  }

 private:
  /// A missing value has the mark of whatever comes next: take its parent's.
  static YAML::Mark mark_of(const YAML::Node& node, const YAML::Mark& parent) {
    return node.IsNull() || node.Mark().is_null() ? parent : node.Mark();
  }

  std::string place(const YAML::Mark& mark) const {
    return mark.is_null() ? path_.string() : fmt::format("{}:{}", path_.string(), mark.line + 1);
  }

  ConfigError at(const YAML::Mark& mark, const std::string& message) const {
    return ConfigError(one_line(place(mark) + ": " + message));
  }

  const Option& find(const std::string& key, const YAML::Mark& mark) const {
    std::vector<std::string> known;
    for (const Option& option : option_table()) {
      known.push_back(option.key());
      if (known.back() == key) return option;
    }
    throw at(mark, fmt::format("unknown key `{}`{}", key, suggestion(key, known)));
  }

  std::string scalar(const Option& option, const YAML::Node& node, const YAML::Mark& mark) const {
    const auto fail = [&](const char* what) { return at(mark, option.key() + ": " + what); };
    if (node.IsNull()) throw fail("has no value; give one or remove the line");
    if (node.IsMap()) throw fail("must be one value, not a map; a text with `: ` needs quotes");
    if (!node.IsScalar()) throw fail("must be one value, not a list");
    return option.input_path ? relocated(node.Scalar()) : node.Scalar();
  }

  Values values(const Option& option, const YAML::Node& node, const YAML::Mark& mark) const {
    const bool list = option.arity == Arity::kList || option.arity == Arity::kCommaList;
    if (!list || !node.IsSequence()) return {scalar(option, node, mark)};
    Values values;
    for (const YAML::Node& item : node) {
      values.push_back(scalar(option, item, mark_of(item, mark)));
    }
    return values;
  }

  std::string relocated(const std::string& text) const {
    const bool here =
        text == "." || text == ".." || text.starts_with("./") || text.starts_with("../");
    return here ? (path_.parent_path() / text).string() : text;
  }

  std::filesystem::path path_;
};

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
  if (config.batch_size.size() > 1 && !config.benchmark && command == Command::kRun) {
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
  apply_level(defaults, YamlLevel(yaml).parse());
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
  if (command == Command::kPlan) return;
  check_prompts(config);
  check_score(config);
  if (config.resume && (!config.output || *config.output == "-")) {
    refuse("--resume needs --output FILE.jsonl, the file whose finished prompts are skipped");
  }
}

}  // namespace zi
