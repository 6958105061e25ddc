#pragma once

#include "model/family.h"
#include "zero_infer/model_spec.h"

namespace zi {

/// Where a block's tensors stand in its UnitSpec; -1: it has none. Matrices that are multiplied
/// side by side stand side by side.
struct BlockPlaces {
  int qkv = 0, qkv_count = 1;  // matrices: one, or q, k and v
  int output = 0;
  int up = 0, up_count = 1;  // one, or the gate and up
  int down = 0;
  int norm1 = -1, norm1_beta = -1, norm2 = -1, norm2_beta = -1;  // vectors
  int q_bias = -1, k_bias = -1, v_bias = -1;                     // of one matrix: q_bias alone
  int q_norm = -1, k_norm = -1;
  int output_bias = -1, gate_bias = -1, up_bias = -1, down_bias = -1;
};

/// What a decoder's tensors are, and where a block's stand.
struct DecoderSpec {
  ModelSpec spec;
  BlockPlaces at;
  int positions_at = -1;       // in the model's vectors; -1: it has none
  int embedding_norm_at = -1;  // the same, with its biases after it
};

/// `has_lm_head`: the checkpoint stores a head of its own.
DecoderSpec decoder_spec(const ModelConfig& config, const Family& family, bool has_lm_head);

}  // namespace zi
