#include "config/option_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "config/written_values.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// An option that lives in one member: `parse` makes the member's value from what was written.
template <typename T, typename Parse, typename Check>
Option option(std::string flag, T RunConfig::*member, Arity arity, std::string value_name,
              std::string help, Parse parse, Check check) {
  Option made;
  made.flag = std::move(flag);
  made.arity = arity;
  made.value_name = std::move(value_name);
  made.help = std::move(help);
  made.read = [member, parse](RunConfig& config, const Values& values) {
    config.*member = parse(values);
  };
  made.check = [member, check](const RunConfig& config) { check(config.*member); };
  made.is_set = [member](const RunConfig& config) { return config.*member != RunConfig().*member; };
  made.reset = [member](RunConfig& config) { config.*member = RunConfig().*member; };
  return made;
}

Option toggle(std::string flag, bool RunConfig::*member, std::string help) {
  return option(
      std::move(flag), member, Arity::kSwitch, "", std::move(help),
      [](const Values& values) { return parse_switch(values.at(0)); }, [](bool) {});
}

/// A text that may be empty only while it is not given.
Option text(std::string flag, std::string RunConfig::*member, std::string value_name,
            std::string help) {
  return option(
      std::move(flag), member, Arity::kSingle, std::move(value_name), std::move(help),
      [](const Values& values) {
        if (values.at(0).empty()) throw ConfigError("must not be empty");
        return values[0];
      },
      [](const std::string&) {});
}

template <typename T>
Option optional_text(std::string flag, std::optional<T> RunConfig::*member, std::string value_name,
                     std::string help) {
  return option(
      std::move(flag), member, Arity::kSingle, std::move(value_name), std::move(help),
      [](const Values& values) { return std::optional<T>(values.at(0)); },
      [](const std::optional<T>& value) {
        if (value && value->empty()) throw ConfigError("must not be empty");
      });
}

template <typename Check>
Option texts(std::string flag, Values RunConfig::*member, std::string help, Check check) {
  return option(
      std::move(flag), member, Arity::kList, "TEXT", std::move(help),
      [](const Values& values) { return values; }, check);
}

Option count(std::string flag, std::int64_t RunConfig::*member, std::int64_t least,
             std::int64_t most, std::string help) {
  Option made = option(
      std::move(flag), member, Arity::kSingle, "N", std::move(help),
      [](const Values& values) {
        return parse_number<std::int64_t>(values.at(0), "a whole number");
      },
      [least, most](std::int64_t value) { check_count(value, least, most); });
  made.default_text = fmt::format("{}", RunConfig().*member);
  return made;
}

template <typename Valid>
Option real(std::string flag, double RunConfig::*member, Valid valid, std::string range,
            std::string help) {
  Option made = option(
      std::move(flag), member, Arity::kSingle, "X", std::move(help),
      [](const Values& values) { return parse_number<double>(values.at(0), "a number"); },
      [valid, range](double value) {
        if (std::isfinite(value) && valid(value)) return;
        throw ConfigError(fmt::format("must be {}, not {}", range, value));
      });
  made.default_text = fmt::format("{}", RunConfig().*member);
  return made;
}

/// A number with its unit.
template <typename T, typename Parse>
Option quantity(std::string flag, std::optional<T> RunConfig::*member, std::string value_name,
                std::string help, Parse parse) {
  return option(
      std::move(flag), member, Arity::kSingle, std::move(value_name), std::move(help),
      [parse](const Values& values) { return std::optional<T>(parse(values.at(0))); },
      [](const std::optional<T>&) {});
}

Option size(std::string flag, std::optional<std::size_t> RunConfig::*member, std::string help) {
  return quantity(std::move(flag), member, "SIZE", std::move(help), parse_size);
}

/// One of a few words, such as `auto|dummy`; the first is the default.
template <typename T>
Option choice(std::string flag, T RunConfig::*member,
              std::vector<std::pair<std::string, T>> choices, std::string help) {
  std::string names;
  for (const auto& [name, value] : choices) names += (names.empty() ? "" : "|") + name;
  const std::string default_text = choices.front().first;
  Option made = option(
      std::move(flag), member, Arity::kSingle, names, std::move(help),
      [choices, names](const Values& values) {
        for (const auto& [name, value] : choices) {
          if (name == values.at(0)) return value;
        }
        throw ConfigError(fmt::format("`{}` is not one of {}", values[0], names));
      },
      [](T) {});
  made.default_text = default_text;
  return made;
}

Option cpu_share() {
  Option made = option(
      "cpu-share", &RunConfig::cpu_share, Arity::kSingle, "auto|X",
      "of the weights in pinned memory, the part that the host's cores\nmultiply beside the "
      "device, from 0 to 1; auto: as measured at the\nstart, by the rows of a pass",
      [](const Values& values) -> std::optional<double> {
        if (values.at(0) == "auto") return std::nullopt;
        return parse_number<double>(values[0], "auto or a number");
      },
      [](const std::optional<double>& share) {
        if (!share || (*share >= 0 && *share <= 1)) return;
        throw ConfigError(fmt::format("must be from 0 to 1, not {}", *share));
      });
  made.default_text = fmt::format("{}", *RunConfig().cpu_share);
  return made;
}

Option replicated_blocks() {
  Option made = option(
      "replicated-blocks", &RunConfig::replicated_blocks, Arity::kSingle, "auto|N",
      "blocks that every rank holds whole, gathered once and not in each\npass; auto: as many as "
      "device memory has room for next to the KV\ncache (CPU backend: 0)",
      [](const Values& values) -> std::optional<std::int64_t> {
        if (values.at(0) == "auto") return std::nullopt;
        return parse_number<std::int64_t>(values[0], "auto or a whole number");
      },
      [](const std::optional<std::int64_t>& blocks) {
        if (blocks) check_count(*blocks, 0, kMostCount);
      });
  made.default_text = fmt::format("{}", *RunConfig().replicated_blocks);
  return made;
}

Option seed() {
  Option made = option(
      "seed", &RunConfig::seed, Arity::kSingle, "N",
      "for sampling and dummy weights: the same seed, the same draws",
      [](const Values& values) {
        return parse_number<std::uint64_t>(
            values.at(0),
            fmt::format("a whole number from 0 to {}", std::numeric_limits<std::uint64_t>::max()));
      },
      [](std::uint64_t) {});
  made.default_text = fmt::format("{}", RunConfig().seed);
  return made;
}

Option batch_size() {
  Option made = option(
      "batch-size", &RunConfig::batch_size, Arity::kCommaList, "N[,N..]",
      "lanes: sequences that a rank works on at once; with\n--benchmark also a list, such as "
      "1,8,16",
      [](const Values& values) {
        std::vector<std::int64_t> sizes;
        const std::string joined = fmt::format("{}", fmt::join(values, ","));
        std::string_view rest = joined;
        while (true) {
          const std::size_t comma = rest.find(',');
          std::string_view item = rest.substr(0, comma);
          while (!item.empty() && item.front() == ' ') item.remove_prefix(1);
          while (!item.empty() && item.back() == ' ') item.remove_suffix(1);
          sizes.push_back(parse_number<std::int64_t>(item, "a whole number"));
          if (comma == std::string_view::npos) return sizes;
          rest.remove_prefix(comma + 1);
        }
      },
      [](const std::vector<std::int64_t>& sizes) {
        if (sizes.empty()) throw ConfigError("must have at least one value");
        for (std::int64_t size : sizes) check_count(size, 1, kMostCount);
      });
  made.default_text = fmt::format("{}", fmt::join(RunConfig().batch_size, ","));
  return made;
}

Option input_path(Option option) {
  option.input_path = true;
  return option;
}

Option job_only(Option option) {
  option.job_only = true;
  return option;
}

Option with_rival(Option option, std::string rival) {
  option.rival = std::move(rival);
  return option;
}

Option with_default(Option option, std::string default_text) {
  option.default_text = std::move(default_text);
  return option;
}

std::vector<Option> model_options() {
  return {
      input_path(text("model", &RunConfig::model, "DIR|NAME",
                      "a directory with config.json and safetensors files, or a\n"
                      "name such as bigscience/bloom in the local Hugging Face cache")),
      choice<LoadFormat>("load-format", &RunConfig::load_format,
                         {{"auto", LoadFormat::kAuto}, {"dummy", LoadFormat::kDummy}},
                         "dummy: seeded random weights, only config.json is read"),
      with_default(
          quantity("compute-dtype", &RunConfig::compute_dtype, "TYPE",
                   "type of the matrix products: bfloat16, float16 or float32;\nfor packed "
                   "weights on a CPU bfloat16 unless it is given",
                   parse_dtype),
          "the weights' own 16-bit type, else bfloat16"),
      choice<WeightChoice>("weight-format", &RunConfig::weight_format,
                           {{"stored", WeightChoice::kStored},
                            {"int8", WeightChoice::kInt8},
                            {"int4", WeightChoice::kInt4}},
                           "how the blocks' weights rest and travel: int8 and int4 are made "
                           "while\nthey are loaded"),
      choice<WeightChoice>("head-format", &RunConfig::head_format,
                           {{"auto", WeightChoice::kAuto},
                            {"stored", WeightChoice::kStored},
                            {"int8", WeightChoice::kInt8},
                            {"int4", WeightChoice::kInt4}},
                           "the same of head and embedding; auto: int8 with packed blocks"),
      choice<BackendChoice>("backend", &RunConfig::backend,
                            {{"auto", BackendChoice::kAuto},
                             {"cpu", BackendChoice::kCpu},
                             {"cuda", BackendChoice::kCuda}},
                            "auto: the GPU where there is one"),
  };
}

std::vector<Option> prompt_options() {
  return {
      job_only(with_rival(
          texts("prompt", &RunConfig::prompt, "a prompt; repeatable", [](const Values&) {}),
          "prompts")),
      job_only(with_rival(
          input_path(optional_text("prompts", &RunConfig::prompts, "FILE.jsonl|-",
                                   "one prompt per line: {\"prompt\": ..}, {\"messages\": [..]}\n"
                                   "or {\"prompt_ids\": [..]}, with optional id and "
                                   "max_new_tokens")),
          "prompt")),
      job_only(toggle("chat", &RunConfig::chat,
                      "each --prompt is a user's message, put into the model's chat\ntemplate")),
      toggle("no-special-tokens", &RunConfig::no_special_tokens,
             "prompts without the tokens that the tokenizer puts around a\ntext (such as <s>)"),
  };
}

std::vector<Option> generation_options() {
  return {
      count("max-new-tokens", &RunConfig::max_new_tokens, 1, kMostCount,
            "most tokens to generate for a prompt"),
      batch_size(),
      count("max-pass-tokens", &RunConfig::max_pass_tokens, 0, kMostCount,
            "most tokens in one pass, prompts and lanes together;\n0: 512 on a CPU, 2048 on a GPU, "
            "but at least one per lane"),
      texts("stop", &RunConfig::stop, "text that ends a sequence; repeatable",
            [](const Values& stops) {
              for (const std::string& stop : stops) {
                if (stop.empty()) throw ConfigError("must not be empty: it would end every text");
              }
            }),
      toggle("ignore-eos", &RunConfig::ignore_eos, "continue past the end-of-text token"),
      job_only(toggle("score", &RunConfig::score,
                      "generate nothing: log-likelihood and perplexity of the prompts")),
      toggle("no-prefix-sharing", &RunConfig::no_prefix_sharing,
             "compute each prompt from its first token on, also where others\nbegin alike"),
  };
}

/// Whether sampling can use it: it computes in float32, and divides by it.
bool computes(double x) { return x >= 1e-30 && x <= 1e30; }

std::vector<Option> sampling_options() {
  return {
      real(
          "temperature", &RunConfig::temperature, [](double x) { return x == 0 || computes(x); },
          "0, or from 1e-30 to 1e30", "0: greedy, always the best token"),
      count("top-k", &RunConfig::top_k, 0, kMostCount,
            "sample from the N best tokens; 0: from all"),
      real(
          "top-p", &RunConfig::top_p, [](double x) { return x <= 1 && computes(x); },
          "from 1e-30 to 1", "sample from the best tokens whose probabilities add up to X"),
      real(
          "repetition-penalty", &RunConfig::repetition_penalty,
          [](double x) { return computes(x); }, "from 1e-30 to 1e30",
          "above 1 makes tokens that have occurred less likely"),
      seed(),
  };
}

std::vector<Option> memory_options() {
  return {
      choice<Travel>("travel", &RunConfig::travel,
                     {{"auto", Travel::kAuto},
                      {"weights", Travel::kWeights},
                      {"activations", Travel::kActivations}},
                     "what goes from rank to rank: weights, each block just before it\n"
                     "runs, or the inputs and results of products with weights that\n"
                     "stay; auto: in each pass the faster one, as measured at the start"),
      replicated_blocks(),
      choice<PartitionWithin>(
          "partition-within", &RunConfig::partition_within,
          {{"job", PartitionWithin::kJob}, {"host", PartitionWithin::kHost}},
          "which ranks hold all weights together: those of the job, or those\nof each host: no "
          "weights are on the network"),
      with_default(
          quantity("network", &RunConfig::network, "RATE",
                   "for plans: what a host receives from others, such as 25GB/s", parse_rate),
          "as zero-infer limits has measured"),
      toggle("cpu-offload", &RunConfig::cpu_offload,
             "weights beyond the device's budget rest in pinned memory"),
      cpu_share(),
      with_default(optional_text("nvme-offload-path", &RunConfig::nvme_offload_path, "DIR",
                                 "weights beyond the other budgets rest in files here"),
                   "off"),
      with_default(size("gpu-weight-budget", &RunConfig::gpu_weight_budget,
                        "device memory for resident weights, per rank"),
                   "all; with an offload, what fits (CPU backend: 0)"),
      with_default(size("cpu-weight-budget", &RunConfig::cpu_weight_budget,
                        "pinned memory for weights, per rank"),
                   "with --cpu-offload, what fits; else 0"),
      with_default(size("kv-budget", &RunConfig::kv_budget, "memory for the KV cache, per rank"),
                   "what the batch needs"),
  };
}

std::vector<Option> output_options() {
  return {
      job_only(with_default(optional_text("output", &RunConfig::output, "FILE.jsonl|-",
                                          "one line of JSON for each finished sequence"),
                            "readable text")),
      job_only(toggle("resume", &RunConfig::resume,
                      "skip the prompts that the output file already holds")),
      job_only(count("logprobs", &RunConfig::logprobs, 0, 100,
                     "log-probabilities of each token and of the N best")),
      job_only(with_default(
          optional_text("trace", &RunConfig::trace, "FILE.json",
                        "when each unit was read, copied, gathered and computed, on every\n"
                        "rank, for Perfetto or chrome://tracing"),
          "off")),
      with_rival(toggle("quiet", &RunConfig::quiet, "only results, warnings and errors"),
                 "verbose"),
      with_rival(toggle("verbose", &RunConfig::verbose, "also plans, placement and timings"),
                 "quiet"),
  };
}

/// Most seconds that a host may be silent: a day.
constexpr std::int64_t kLongestHostTimeout = 86400;

Option host_timeout() {
  Option made = count("host-timeout", &RunConfig::host_timeout, 0, kLongestHostTimeout,
                      "a host that is silent for longer, because it or its network has\n"
                      "stopped, ends the job; 0: wait for ever");
  made.value_name = "SECONDS";
  return made;
}

std::vector<Option> other_options() {
  return {host_timeout(),
          job_only(toggle("benchmark", &RunConfig::benchmark,
                          "measure time per token: fills the batch with prompts, built-in\n"
                          "ones when none is given"))};
}

}  // namespace

std::string Option::key() const {
  std::string key = flag;
  std::replace(key.begin(), key.end(), '-', '_');
  return key;
}

const std::vector<Option>& option_table() {
  static const std::vector<Option> table = [] {
    std::vector<Option> all;
    const auto add = [&all](const std::string& group, std::vector<Option> options) {
      for (Option& option : options) {
        option.group = group;
        all.push_back(std::move(option));
      }
    };
    add("Model", model_options());
    add("Prompts", prompt_options());
    add("Generation", generation_options());
    add("Sampling", sampling_options());
    add("Memory and offload", memory_options());
    add("Output", output_options());
    add("Other", other_options());
    return all;
  }();
  return table;
}

}  // namespace zi
