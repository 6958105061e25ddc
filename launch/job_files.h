#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/output_file.h"
#include "launch/standard_descriptors.h"
#include "text/prompt_source.h"
#include "text/result_file.h"
#include "zero_infer/run_config.h"

namespace zi {

class CheckpointChat;

/// Where a job's prompts come from and where its results go: on rank 0 alone.
class JobFiles {
 public:
  JobFiles() = default;
  JobFiles(const JobFiles&) = delete;
  JobFiles& operator=(const JobFiles&) = delete;

  /// Refuses what cannot be read or written, and what would destroy a file of the job, before
  /// anything is loaded: throws ConfigError, IoError or PromptError. Outputs are locked from now
  /// on; their contents stay until there is a result. With --resume, prompts that --output holds
  /// are left out.
  void open(const CommandLine& command, const ClosedDescriptors& closed);

  std::unique_ptr<PromptSource> source;  // none with --benchmark
  std::optional<ResultFile> results;     // --output, also `-`; none with --benchmark
  std::optional<OutputFile> benchmark;   // --output FILE of --benchmark
  std::optional<OutputFile> trace;       // --trace
  std::int64_t bad_lines = 0;            // of the prompts: reported so far

  /// With --resume: throws ConfigError where results were made by another model.
  void check_model(const std::string& model, const std::string& output) const;

  /// Tries the first prompts, where they can be had at once: those that `check` refuses (see
  /// check_first_prompts) are reported now, and count as bad lines.
  void check_first_prompts(std::size_t most, const std::function<void(Prompt&)>& check);

 private:
  std::unique_ptr<PromptSource> open_prompts(const RunConfig& config, bool tell);
  void resume(const RunConfig& config);

  std::shared_ptr<const CheckpointChat> chat_;   // what makes messages a prompt
  std::map<std::string, std::uint64_t> models_;  // that made the results, with a line of each
};

}  // namespace zi
