#include "launch/job_files.h"

#include <fmt/format.h>

#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "base/file_roles.h"
#include "chat/chat_template.h"
#include "checkpoint/checkpoint_files.h"
#include "engine/generation_options.h"
#include "text/first_prompts.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

namespace fs = std::filesystem;

/// Prompts that are compared with the finished ones at a time.
constexpr std::size_t kComparedAtOnce = 1024;

void add_shard_files(FileRoles& roles, const fs::path& directory) {
  std::error_code error;
  fs::recursive_directory_iterator entry(directory, fs::directory_options::skip_permission_denied,
                                         error);
  for (const fs::recursive_directory_iterator end; !error && entry != end; entry.increment(error)) {
    if (entry.depth() >= 1) entry.disable_recursion_pending();  // <directory>/<model>/<shard>
    if (entry->path().extension() != ".shard") continue;
    roles.reads("the shard file " + entry->path().string(), entry->path());
  }
}

/// No output may be a file that the job reads, nor another output.
void check_roles(const CommandLine& command) {
  const RunConfig& config = command.config;
  FileRoles roles;
  if (command.config_file) roles.reads("--config " + *command.config_file, *command.config_file);
  if (config.prompts) roles.reads("--prompts " + *config.prompts, *config.prompts);
  if (config.output) roles.writes("--output", *config.output);
  if (config.trace) roles.writes("--trace", *config.trace);
  for (const fs::path& file : checkpoint_files(resolve_model(config.model))) {
    roles.reads("the model's file " + file.string(), file);
  }
  if (config.nvme_offload_path) add_shard_files(roles, *config.nvme_offload_path);
  roles.check();
}

void check_standard_streams(const RunConfig& config, const ClosedDescriptors& closed) {
  if (closed.input && config.prompts == "-") {
    throw ConfigError(
        "--prompts - reads standard input, which is closed; redirect a file or a pipe into it");
  }
  if (closed.output && (!config.output || config.output == "-")) {
    throw ConfigError("results go to standard output, which is closed; give --output FILE");
  }
}

}  // namespace

void JobFiles::open(const CommandLine& command, const ClosedDescriptors& closed) {
  const RunConfig& config = command.config;
  check_standard_streams(config, closed);
  check_roles(command);
  if (config.output && !config.benchmark) results.emplace(*config.output, config.resume);
  if (config.benchmark && config.output && config.output != "-") {
    benchmark.emplace(*config.output, "--output", OutputFile::Mode::kReplace);
  }
  if (config.trace) trace.emplace(*config.trace, "--trace", OutputFile::Mode::kReplace);
  if (config.benchmark) return;
  chat_ = std::make_shared<const CheckpointChat>(resolve_model(config.model));
  source = open_prompts(config, true);
  if (config.resume) resume(config);
}

std::unique_ptr<PromptSource> JobFiles::open_prompts(const RunConfig& config, bool tell) {
  if (!config.prompts) return prompts_from_flags(config.prompt, config.chat ? chat_ : nullptr);
  return prompts_from_jsonl(
      *config.prompts,
      [this, tell](const std::string& message) {
        if (!tell) return;
        log_error(message);
        ++bad_lines;
      },
      chat_);
}

void JobFiles::resume(const RunConfig& config) {
  const auto done = results->finished();
  done->check_kind(config.score, config.logprobs, *config.output);
  done->warn_of_missing_settings(*config.output);
  models_ = done->models;
  // Prompts that changed are better found now than when they are taken, between passes. Those of a
  // pipe, which cannot be read twice, are found then.
  const RecordedJob job = GenerationOptions::from(config).recorded();
  ChangedLimits limits = ChangedLimits::kTell;
  if (source->total()) {
    const auto compared = skip_done(open_prompts(config, false), done, job,
                                    std::exchange(limits, ChangedLimits::kIgnore));
    while (!compared->exhausted()) compared->take(kComparedAtOnce, true);
  }
  log_info(fmt::format("{} finished sequences found in {}: they are skipped", done->by_id.size(),
                       *config.output));
  source = skip_done(std::move(source), done, job, limits);
  results->forget_finished();
}

void JobFiles::check_model(const std::string& model, const std::string& output) const {
  check_models(models_, model, output);
}

void JobFiles::check_first_prompts(std::size_t most, const std::function<void(Prompt&)>& check) {
  if (!source->total()) return;  // a pipe may be slow
  source = zi::check_first_prompts(std::move(source), most, check, [this](const std::string& why) {
    log_error(why);
    ++bad_lines;
  });
}

}  // namespace zi
