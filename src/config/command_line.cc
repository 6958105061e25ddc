#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <optional>
#include <utility>

#include "base/suggestion.h"
#include "config/command_options.h"
#include "config/foreign_names.h"
#include "config/option_table.h"
#include "config/yaml_level.h"
#include "zero_infer/error.h"
#include "zero_infer/run_config.h"

namespace zi {
namespace {

struct Flag {
  const Option* option = nullptr;
  CLI::Option* parsed = nullptr;  // owned by the CLI::App
};
struct CommandFlag {
  const CommandOption* option = nullptr;
  CLI::Option* parsed = nullptr;
};

constexpr std::size_t kNameColumns = 36;
constexpr std::size_t kHelpColumns = 64;

/// The option's help with its default, on a line of its own where the last line has no room for it.
std::string help_text(const Option& option) {
  if (option.default_text.empty()) return option.help;
  const std::string text = fmt::format("(default: {})", option.default_text);
  const std::size_t last_line = option.help.size() - (option.help.rfind('\n') + 1);
  const char* gap = last_line + 1 + text.size() > kHelpColumns ? "\n" : " ";
  return option.help + gap + text;
}

/// A flag that takes one text each time it is given. CLI11 only splits and counts: it converts
/// nothing, and a value in brackets stays as it is.
CLI::Option* add_valued(CLI::App& app, const std::string& flag, const std::string& value_name,
                        const std::string& help) {
  return app
      .add_option(
          "--" + flag, [](const CLI::results_t&) { return true; }, help)
      ->option_text(value_name)
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

struct CommandText {
  const char* name;
  const char* purpose;
  const char* footer;
};

CommandText text_of(Command command) {
  switch (command) {
    case Command::kServe:
      return {
          "zero-infer serve", "Answers requests of the OpenAI API with all ranks.",
          "The flags of a run work here as well, but for those about prompts and results: see "
          "zero-infer --help.\nWhat they say of generation and sampling holds for requests that "
          "say nothing else. Several ranks:\nmpirun -np 4 zero-infer serve .."};
    case Command::kChat:
      return {"zero-infer chat", "A conversation at the terminal, by the model's chat template.",
              "The flags of a run work here as well, but for those about prompts and results: see "
              "zero-infer --help.\nAn answer is as long as there is room for, unless "
              "--max-new-tokens says otherwise."};
    case Command::kPlan:
      return {
          "zero-infer plan",
          "Says what fits where and how fast it can be, without loading weights.",
          "The flags of a run work here as well: see zero-infer --help. Without --limits the plan "
          "uses what\nzero-infer limits last measured on this machine, else typical values."};
    case Command::kLimits:
      return {
          "zero-infer limits", "Measures the links and memories of this machine.",
          "On several GPUs: mpirun -np 4 zero-infer limits .. The result is kept for zero-infer "
          "plan."};
    case Command::kPack:
      return {"zero-infer pack",
              "Writes a checkpoint whose weights are packed, for runs that do not pack them again.",
              "It takes the place of the other one in --model, with any number of ranks and on any "
              "tier. Answers are\nthose of a run with the same --weight-format and --head-format."};
    case Command::kRun:
      break;
  }
  return {
      "zero-infer",
      "Runs language models whose weights do not fit on one device.\n"
      "zero-infer serve, chat, plan, limits and pack have flags of their own: zero-infer serve "
      "--help.",
      "Each flag is also a key of the YAML file, with `_` for `-`; flags win. Switches also accept "
      "=false.\nSizes read like 24GiB, 512MiB or 1.5GB. Several ranks: mpirun -np 4 zero-infer "
      ".."};
}

/// The flags of a command, in CLI11's terms: its own, and for a run and a plan those of the table.
class Flags {
 public:
  explicit Flags(Command command) : app_(text_of(command).purpose, text_of(command).name) {
    app_.allow_extras();  // named with a suggestion below
    app_.get_formatter()->column_width(kNameColumns);
    app_.footer(text_of(command).footer);
    for (const CommandOption& option : options_of(command)) {
      CLI::Option* parsed = option.is_switch
                                ? app_.add_flag("--" + option.flag)->description(option.help)
                                : add_valued(app_, option.flag, option.value_name, option.help);
      command_flags_.push_back({&option, parsed->group("Options")});
      known_.push_back("--" + option.flag);
    }
    if (command != Command::kLimits && command != Command::kPack) {
      add_table(command == Command::kRun);
    }
    // Last, so that --help shows their group last.
    app_.set_help_flag("-h,--help", "show this and exit")->group("Other");
    app_.set_version_flag("--version", "zero-infer " ZI_VERSION, "show the version and exit")
        ->group("Other");
    known_.insert(known_.end(), {"--help", "--version"});
  }

  /// The text that --help or --version asks for; nothing when there is work to do.
  std::optional<std::string> parse(int argc, const char* const* argv) {
    try {
      app_.parse(argc, argv);
    } catch (const CLI::CallForVersion& version) {
      return fmt::format("{}\n", version.what());
    } catch (const CLI::CallForHelp&) {
      return app_.help();
    } catch (const CLI::ArgumentMismatch&) {
      // Each flag takes its value whatever it looks like: only the last can be without one.
      throw ConfigError(one_line(fmt::format("{}: needs a value; see --help", argv[argc - 1])));
    } catch (const CLI::ParseError& error) {
      throw ConfigError(one_line(fmt::format("{}; see --help", error.what())));
    }
    for (const std::string& extra : app_.remaining()) refuse_extra(extra);
    return std::nullopt;
  }

  std::optional<std::string> config() const {
    if (config_ == nullptr || config_->count() == 0) return std::nullopt;
    check_once(*config_, "config");
    return config_->results()[0];
  }

  void read_command_flags(CommandLine& line) const {
    for (const CommandFlag& flag : command_flags_) {
      if (flag.parsed->count() == 0) continue;
      check_once(*flag.parsed, flag.option->flag);
      try {
        flag.option->read(line, flag.parsed->results()[0]);
      } catch (const ConfigError& error) {
        throw ConfigError(one_line(fmt::format("--{}: {}", flag.option->flag, error.what())));
      }
    }
  }

  std::vector<Given> level() const {
    std::vector<Given> level;
    for (const Flag& flag : flags_) {
      if (flag.parsed->count() == 0) continue;
      if (flag.option->arity != Arity::kList) check_once(*flag.parsed, flag.option->flag);
      level.push_back({flag.option, flag.parsed->results(), "--" + flag.option->flag});
    }
    return level;
  }

 private:
  /// `shown`: in --help; a server and a plan take them all, but list only their own.
  void add_table(bool shown) {
    config_ = add_valued(app_, "config", "FILE.yaml", "read these keys first")
                  ->group(shown ? "Model" : "");
    known_.push_back("--config");
    for (const Option& option : option_table()) {
      CLI::Option* parsed =
          option.arity == Arity::kSwitch
              ? app_.add_flag("--" + option.flag)->description(help_text(option))
              : add_valued(app_, option.flag, option.value_name, help_text(option));
      flags_.push_back({&option, parsed->group(shown ? option.group : "")});
      known_.push_back("--" + option.flag);
    }
  }

  static void check_once(const CLI::Option& parsed, const std::string& flag) {
    if (parsed.count() == 1) return;
    throw ConfigError(fmt::format("--{}: given {} times; give it once", flag, parsed.count()));
  }

  [[noreturn]] void refuse_extra(const std::string& extra) const {
    if (!extra.starts_with("-") || extra == "-") {
      throw ConfigError(one_line(fmt::format(
          "unexpected argument `{}`; a text with spaces needs quotes, see --help", extra)));
    }
    const std::string name = extra.substr(0, extra.find('='));
    std::string advice = foreign_name_advice(name, NameStyle::kFlag);
    if (advice.empty()) advice = suggestion(name, known_);
    throw ConfigError(one_line(
        fmt::format("unknown flag `{}`{}", name, advice.empty() ? "; see --help" : advice)));
  }

  CLI::App app_;
  CLI::Option* config_ = nullptr;
  std::vector<Flag> flags_;
  std::vector<CommandFlag> command_flags_;
  std::vector<std::string> known_;
};

/// Throws ConfigError for a first word that is no command: those of a run begin with a flag.
Command command_of(int argc, const char* const* argv) {
  const std::string first = argc > 1 ? argv[1] : "";
  if (first == "serve") return Command::kServe;
  if (first == "chat") return Command::kChat;
  if (first == "plan") return Command::kPlan;
  if (first == "limits") return Command::kLimits;
  if (first == "pack") return Command::kPack;
  if (first.empty() || first.starts_with("-")) return Command::kRun;
  const std::string near = suggestion(first, {"serve", "chat", "plan", "limits", "pack"}, 2);
  const char* const run = "; a run has no command: zero-infer --model DIR --prompt TEXT";
  throw ConfigError(one_line(fmt::format("unknown command `{}`{}", first,
                                         !near.empty() ? near
                                         : first == "run" || first == "generate"
                                             ? std::string(run)
                                             : "; the commands are serve, chat, plan, "
                                               "limits and pack, see --help")));
}

void check_pack(const PackOptions& pack) {
  if (pack.model.empty()) throw ConfigError("no model: give --model DIR|NAME");
  if (pack.output.empty())
    throw ConfigError("no place for the packed checkpoint: give --output DIR");
  const bool head_too =
      pack.head_format == WeightChoice::kInt8 || pack.head_format == WeightChoice::kInt4;
  if (pack.weight_format == WeightChoice::kStored && !head_too) {
    throw ConfigError(
        "nothing to pack: give --weight-format int8 or int4; for a checkpoint whose blocks are "
        "quantized already --head-format int8 or int4");
  }
}

/// Takes out what only a job has a use for: refused as a flag; a file may be a job's as well.
void take_out_job_options(CommandLine& line, std::vector<Given>& file,
                          const std::vector<Given>& flags) {
  const char* const instead = line.command == Command::kServe
                                  ? "a server gets its prompts by requests, and answers them"
                                  : "a chat gets its prompts from the terminal, and answers there";
  for (const Given& given : flags) {
    if (!given.option->job_only) continue;
    throw ConfigError(fmt::format("--{} is for a job: {}; remove it", given.option->flag, instead));
  }
  std::erase_if(file, [&](const Given& given) {
    if (given.option->job_only) line.unused_keys.push_back(given.option->key());
    return given.option->job_only;
  });
  for (const std::vector<Given>* const level : {&std::as_const(file), &flags}) {
    for (const Given& given : *level) line.given.insert(given.option->flag);
  }
}

void check_serve(ServeOptions& serve) {
  if (serve.tls_certificate.empty() != serve.tls_key.empty()) {
    throw ConfigError("TLS needs both --tls-certificate and --tls-key; give the other one as well");
  }
  if (serve.api_key) return;
  if (const char* const key = std::getenv("ZERO_INFER_API_KEY"); key != nullptr && *key != '\0') {
    serve.api_key = key;
  }
}

}  // namespace

CommandLine parse_command_line(int argc, const char* const* argv) {
  CommandLine line;
  line.command = command_of(argc, argv);
  Flags flags(line.command);
  const int words = line.command == Command::kRun ? 0 : 1;
  if (std::optional<std::string> text = flags.parse(argc - words, argv + words)) {
    line.exit_now = true;
    line.text = std::move(*text);
    return line;
  }
  flags.read_command_flags(line);
  if (line.command == Command::kPack) check_pack(line.pack);
  if (line.command == Command::kLimits || line.command == Command::kPack) return line;
  line.config_file = flags.config();
  std::vector<Given> file;
  if (line.config_file) file = read_yaml_level(*line.config_file);
  const std::vector<Given> written = flags.level();
  if (line.command == Command::kServe || line.command == Command::kChat) {
    take_out_job_options(line, file, written);
  }
  if (line.command == Command::kServe) check_serve(line.serve);
  apply_level(line.config, file);
  apply_level(line.config, written);
  check(line.config, line.command);
  return line;
}

}  // namespace zi
