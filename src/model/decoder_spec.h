#pragma once

#include "model/decoder.h"

namespace zi {

/// What a decoder's tensors are, and where a block's stand.
struct DecoderSpec {
  ModelSpec spec;
  BlockPlaces at;
  int positions_at = -1;
  int embedding_norm_at = -1;
};

/// `has_lm_head`: the checkpoint stores a head of its own.
DecoderSpec decoder_spec(const ModelConfig& config, const Family& family, bool has_lm_head);

}  // namespace zi
