#include "config/foreign_names.h"

#include <fmt/format.h>

#include <algorithm>

namespace zi {
namespace {

struct ForeignName {
  std::string_view name;         // without dashes in front; `-` inside
  std::string_view own;          // the setting here; empty: there is none
  std::string_view advice = {};  // what else is to be said
};

constexpr std::string_view kRanks =
    "the weights are cut over the ranks of the job: mpirun -np N zero-infer ..";
constexpr std::string_view kDeviceMemory =
    "memory is planned; --gpu-weight-budget and --kv-budget say how much weights and KV cache get";
constexpr std::string_view kKvTokens = "it is a size: zero-infer plan says how many tokens fit";
constexpr std::string_view kOffload = "see also --cpu-offload and --nvme-offload-path";
constexpr std::string_view kQuantized =
    "checkpoints that are quantized are known by their config.json; others are packed so";
constexpr std::string_view kCores = "it is the environment's OMP_NUM_THREADS";

constexpr ForeignName kForeign[] = {
    // vLLM
    {"tensor-parallel-size", "", kRanks},
    {"tp", "", kRanks},
    {"pipeline-parallel-size", "", kRanks},
    {"data-parallel-size", "", kRanks},
    {"gpu-memory-utilization", "", kDeviceMemory},
    {"max-model-len", "kv-budget", kKvTokens},
    {"max-num-seqs", "batch-size"},
    {"max-num-batched-tokens", "max-pass-tokens"},
    {"dtype", "compute-dtype"},
    {"torch-dtype", "compute-dtype"},
    {"quantization", "weight-format", kQuantized},
    {"cpu-offload-gb", "cpu-offload", "with --cpu-weight-budget for the size"},
    {"swap-space", "", "the KV cache is not offloaded; sequences are computed again"},
    {"enable-prefix-caching", "", "it is on; --no-prefix-sharing turns it off"},
    {"no-enable-prefix-caching", "no-prefix-sharing"},
    {"max-tokens", "max-new-tokens"},
    {"download-dir", "model", "a directory, or a name in the local Hugging Face cache"},
    {"tokenizer", "model", "the tokenizer is that of the model's directory"},
    {"revision", "model", "give the directory of the snapshot"},
    {"trust-remote-code", "", "no code of a checkpoint is run"},
    {"enforce-eager", "", "nothing is compiled at the start"},
    {"ssl-certfile", "", "zero-infer serve has --tls-certificate"},
    {"ssl-keyfile", "", "zero-infer serve has --tls-key"},
    {"allowed-origins", "", "zero-infer serve has --cors-origin"},
    // llama.cpp
    {"ngl", "gpu-weight-budget", kOffload},
    {"n-gpu-layers", "gpu-weight-budget", kOffload},
    {"gpu-layers", "gpu-weight-budget", kOffload},
    {"c", "kv-budget", kKvTokens},
    {"ctx-size", "kv-budget", kKvTokens},
    {"n", "max-new-tokens"},
    {"n-predict", "max-new-tokens"},
    {"predict", "max-new-tokens"},
    {"m", "model"},
    {"p", "prompt"},
    {"f", "prompts", "a file of JSON lines"},
    {"file", "prompts", "a file of JSON lines"},
    {"b", "max-pass-tokens"},
    {"ubatch-size", "max-pass-tokens"},
    {"np", "batch-size", "the number of ranks is mpirun's: mpirun -np N zero-infer .."},
    {"parallel", "batch-size"},
    {"s", "seed"},
    {"temp", "temperature"},
    {"repeat-penalty", "repetition-penalty"},
    {"t", "", kCores},
    {"threads", "", kCores},
    {"mlock", "cpu-offload", "it takes pinned memory"},
    {"no-mmap", "", "weights are read, not mapped"},
    {"tensor-split", "", kRanks},
    {"ts", "", kRanks},
    {"sm", "", kRanks},
    {"split-mode", "", kRanks},
    {"mg", "", "each rank takes a GPU: see CUDA_VISIBLE_DEVICES"},
    {"main-gpu", "", "each rank takes a GPU: see CUDA_VISIBLE_DEVICES"},
    {"hf", "model", "a name in the local Hugging Face cache"},
    {"hf-repo", "model", "a name in the local Hugging Face cache"},
    {"conversation", "", "zero-infer chat is a conversation at the terminal"},
    {"cnv", "", "zero-infer chat is a conversation at the terminal"},
    {"reverse-prompt", "stop"},
    // DeepSpeed, its examples, and transformers
    {"num-gpus", "", kRanks},
    {"local-rank", "", "ranks are those of mpirun or Slurm"},
    {"ds-config", "config", "a YAML file of the flags here"},
    {"deepspeed", "config", "a YAML file of the flags here"},
    {"disk-offload", "nvme-offload-path"},
    {"nvme-path", "nvme-offload-path"},
    {"offload-dir", "nvme-offload-path"},
    {"offload-folder", "nvme-offload-path"},
    {"quant-bits", "weight-format", "int8 or int4"},
    {"load-in-8bit", "weight-format", "int8"},
    {"load-in-4bit", "weight-format", "int4"},
    {"device-map", "", "zero-infer plan says what fits where; --cpu-offload moves the rest"},
    {"device", "backend"},
    {"model-name", "model"},
    {"model-name-or-path", "model"},
    {"model-path", "model"},
    {"gen-len", "max-new-tokens"},
    {"max-length", "max-new-tokens"},
    {"min-length", "", "lines of --prompts have min_new_tokens"},
    {"do-sample", "temperature", "0 is greedy"},
    {"num-beams", "", "there is no beam search"},
};

/// `--max_model_len` -> `max-model-len`: some programs take both.
std::string plain(std::string_view name) {
  name.remove_prefix(std::min(name.find_first_not_of('-'), name.size()));
  std::string plain(name);
  std::ranges::replace(plain, '_', '-');
  return plain;
}

}  // namespace

std::string foreign_name_advice(std::string_view name, NameStyle style) {
  const auto* const found = std::ranges::find(kForeign, plain(name), &ForeignName::name);
  if (found == std::end(kForeign)) return "";
  if (found->own.empty()) return fmt::format("; {}", found->advice);
  std::string own =
      style == NameStyle::kFlag ? fmt::format("--{}", found->own) : std::string(found->own);
  if (style == NameStyle::kKey) std::ranges::replace(own, '-', '_');
  return fmt::format("; zero-infer's {} for that is `{}`{}{}",
                     style == NameStyle::kFlag ? "flag" : "key", own,
                     found->advice.empty() ? "" : ": ", found->advice);
}

}  // namespace zi
