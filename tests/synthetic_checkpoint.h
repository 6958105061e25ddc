#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "temporary_directory.h"
#include "zero_infer/dtype.h"
#include "zero_infer/model_config.h"
#include "zero_infer/model_spec.h"

namespace zi::test {

/// Writes `text` to `path`, over what was there.
void write_text(const std::filesystem::path& path, std::string_view text);

/// The bytes of a safetensors file with this header (any text) and these tensor bytes.
std::string safetensors_bytes(std::string_view header, std::string_view data);

/// The tensors of a BLOOM checkpoint in its usual order, names without a prefix.
std::vector<TensorSpec> bloom_tensors(const ModelConfig& config);

struct SyntheticOptions {
  DType dtype = DType::kBFloat16;
  int shards = 1;                       // files, with an index
  std::string prefix = "transformer.";  // in front of every name
  bool single = false;                  // one model.safetensors and no index
  std::uint64_t seed = 0;
  std::optional<std::filesystem::path> tokenizer;  // a tokenizer.json to copy along
};

/// Writes a BLOOM checkpoint of the shape in `config_json` into the directory `out`, which it
/// makes. The values are those of make_dummy_weights(seed, dtype). Memory used does not depend on
/// the size. Throws ConfigError (options, too little room on the disk), CheckpointError (config)
/// and IoError.
void write_synthetic_checkpoint(const std::filesystem::path& config_json,
                                const std::filesystem::path& out, const SyntheticOptions& options);

}  // namespace zi::test
