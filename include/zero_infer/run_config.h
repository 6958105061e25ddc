#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "zero_infer/dtype.h"

namespace zi {

enum class LoadFormat { kAuto, kDummy };
/// How the weights of the blocks, or of head and embedding, rest and travel: as they are stored, or
/// packed in fewer bits. kAuto, of head and embedding: int8 where blocks are asked to be packed.
enum class WeightChoice { kAuto, kStored, kInt8, kInt4 };
/// What goes from rank to rank: weights to the activations of each rank, or the activations of all
/// ranks to the weights of each. kAuto: in each pass what is faster.
enum class Travel { kWeights, kActivations, kAuto };

/// `weights`, `activations`, `auto`.
constexpr std::string_view name_of(Travel travel) {
  switch (travel) {
    case Travel::kAuto:
      return "auto";
    case Travel::kWeights:
      return "weights";
    case Travel::kActivations:
      return "activations";
  }
  return "";
}
/// Which ranks hold a copy of the weights together: those of the whole job, or those of each host.
enum class PartitionWithin { kJob, kHost };

/// `job`, `host`.
constexpr std::string_view name_of(PartitionWithin within) {
  return within == PartitionWithin::kHost ? "host" : "job";
}
enum class BackendChoice { kAuto, kCpu, kCuda };

/// All settings of a run, from YAML keys and from flags (flags win). A key is a flag's name with
/// `_` for `-`; `prompt` and `stop` are lists.
struct RunConfig {
  std::string model;  // directory or name
  LoadFormat load_format = LoadFormat::kAuto;
  std::vector<std::string> prompt;     // texts
  bool chat = false;                   // each is a message for the model's chat template
  std::optional<std::string> prompts;  // JSONL path or `-`
  std::optional<std::string> output;   // JSONL path or `-`
  bool no_special_tokens = false;      // without what the tokenizer's post-processor adds
  bool resume = false;
  std::optional<std::string> trace;            // JSON path
  std::int64_t max_new_tokens = 100;           // as many as the published benchmark
  std::vector<std::int64_t> batch_size = {8};  // lanes a rank; more than one only with --benchmark
  std::int64_t max_pass_tokens = 0;  // most rows of a pass, at least batch_size; 0: by the backend
  double temperature = 0;
  std::int64_t top_k = 0;
  double top_p = 1;
  double repetition_penalty = 1;
  std::uint64_t seed = 0;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  std::int64_t logprobs = 0;
  /// Default: the weights' own 16-bit type, else bfloat16; for packed weights on a CPU bfloat16.
  std::optional<DType> compute_dtype;
  WeightChoice weight_format = WeightChoice::kStored;  // of the blocks
  WeightChoice head_format = WeightChoice::kAuto;      // of head and embedding
  bool score = false;
  bool no_prefix_sharing = false;  // each prompt is computed from its first token on
  Travel travel = Travel::kAuto;
  /// Blocks that every rank holds gathered on its device, so that no pass gathers them. Without a
  /// number, on a GPU: as many as memory has room for, next to all else.
  std::optional<std::int64_t> replicated_blocks = 0;
  PartitionWithin partition_within = PartitionWithin::kJob;
  std::optional<double> network;  // for plans: bytes a second that a host receives from others
  BackendChoice backend = BackendChoice::kAuto;
  bool cpu_offload = false;
  /// Of the rows of matrices in pinned memory, those that the host's cores multiply, from 0 to 1;
  /// none: as measured, by the rows of a pass.
  std::optional<double> cpu_share = 0.0;
  std::optional<std::filesystem::path> nvme_offload_path;
  std::optional<std::size_t> gpu_weight_budget;  // bytes a rank of block shards on the device
  std::optional<std::size_t> cpu_weight_budget;  // bytes a rank of block shards in pinned memory
  std::optional<std::size_t> kv_budget;          // bytes a rank
  std::int64_t host_timeout = 15;                // seconds of silence of a host; 0: any
  bool benchmark = false;
  bool quiet = false;
  bool verbose = false;
};

/// What the first word says: `zero-infer serve ..`, `zero-infer plan ..`, `zero-infer limits ..`,
/// `zero-infer pack ..`, else a run.
enum class Command { kRun, kServe, kChat, kPlan, kLimits, kPack };

/// The settings of `zero-infer serve`, in addition to those of a run.
struct ServeOptions {
  std::string host = "127.0.0.1";          // a name or an address of this machine
  std::uint16_t port = 8000;               // 0: any that is free
  std::optional<std::string> api_key;      // none: no request needs one
  std::optional<std::string> cors_origin;  // of pages that may ask, or `*`
  std::string tls_certificate;             // PEM files, both or neither
  std::string tls_key;
  std::int64_t max_queue = 2048;                 // prompts that wait for a lane
  std::size_t max_body = std::size_t{16} << 20;  // bytes of a request
  std::string served_model_name;                 // empty: what --model says
  std::int64_t drain_seconds = 30;               // that running requests have after a signal
};

/// The settings of `zero-infer chat`, in addition to those of a run.
struct ChatOptions {
  std::optional<std::string> system;  // message that a conversation begins with
};

/// The settings of `zero-infer plan`, in addition to those of a run.
struct PlanOptions {
  std::int64_t ranks = 0;                  // 0: as many as mpirun started, else one
  std::int64_t ranks_per_host = 0;         // 0: all on one host
  std::string gpus_like;                   // a GPU of the list; empty: this machine
  std::optional<std::size_t> host_memory;  // of a host, free; default: this machine's
  std::optional<std::string> limits;       // a file that `zero-infer limits` wrote
  std::int64_t tokens = 512;               // of a sequence, for lanes and times
  bool json = false;
};

/// The settings of `zero-infer limits`.
struct LimitsOptions {
  BackendChoice backend = BackendChoice::kAuto;
  std::filesystem::path path;         // storage to measure; empty: none
  std::optional<std::string> output;  // JSON path or `-`
  bool quiet = false;
};

/// The settings of `zero-infer pack`.
struct PackOptions {
  std::string model;  // directory or name
  std::filesystem::path output;
  WeightChoice weight_format = WeightChoice::kStored;
  WeightChoice head_format = WeightChoice::kAuto;
  bool quiet = false;
};

/// What the command line asks for.
struct CommandLine {
  Command command = Command::kRun;
  RunConfig config;                        // of a run, of a server and of a plan
  std::optional<std::string> config_file;  // --config, already read into `config`
  ServeOptions serve;
  ChatOptions chat;
  PlanOptions plan;
  LimitsOptions limits;
  PackOptions pack;
  bool exit_now = false;  // --help or --version was asked for: print `text` and leave with 0
  std::string text;
  /// Of a server and a chat: flags, and keys of the YAML file as flags, that were written.
  std::set<std::string> given;
  /// Keys of the YAML file that mean something to a job alone, where this is a server or a chat.
  std::vector<std::string> unused_keys;
};

/// Reads the YAML file over the defaults. Throws ConfigError with `file:line: ...` for an unknown
/// or repeated key, a value of the wrong type or out of range, for both `prompt` and `prompts`, and
/// for a file that is missing or no YAML map. A path of `model` or `prompts` that starts with `./`
/// or `../` counts from the YAML file's folder, every other relative path from the current
/// directory. What the file says of prompts replaces both `prompt` and `prompts` of `defaults`.
RunConfig load_run_config(const std::filesystem::path& yaml, RunConfig defaults = {});

/// Reads flags (CLI11; --config FILE.yaml first, then the flags over it) and checks the whole.
/// `serve`, `plan`, `limits` and `pack` as the first word have flags of their own, a server and a
/// plan the run's as well. The environment's ZERO_INFER_API_KEY stands for --api-key.
/// Throws ConfigError with one line for anything unknown, malformed, out of range or contradictory.
CommandLine parse_command_line(int argc, const char* const* argv);

/// Checks what does not depend on the machine: ranges, and options that exclude or require each
/// other; for a server and a plan only what they use (no prompts; a plan may have several batch
/// sizes).
void check(const RunConfig& config, Command command = Command::kRun);

}  // namespace zi
