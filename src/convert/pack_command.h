#pragma once

#include <cstdint>
#include <functional>

#include "zero_infer/error.h"
#include "zero_infer/run_config.h"

namespace zi {

/// Bytes of a safetensors file, about: a larger checkpoint has several and an index.
inline constexpr std::uint64_t kPackedFileBytes = 5'000'000'000;

/// The disk has failed, or is full, while the checkpoint was being written.
class PackFailed : public IoError {
 public:
  using IoError::IoError;
};

/// `zero-infer pack`: writes a checkpoint whose matrices are packed as a run with the same
/// --weight-format and --head-format packs them while loading, with config.json, the tokenizer and
/// the chat template (README.md has the format). Memory does not depend on the model's size.
/// `stop_signal` (may be empty) is asked between pieces; where it returns a signal, what was
/// written is removed and the signal is returned, else 0. Throws ConfigError and CheckpointError
/// for bad input, IoError for a place that cannot be read or written, PackFailed later on; nothing
/// stays then.
int pack_checkpoint(const PackOptions& options, const std::function<int()>& stop_signal,
                    std::uint64_t file_bytes = kPackedFileBytes);

}  // namespace zi
