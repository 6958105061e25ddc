#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "zero_infer/model_config.h"
#include "zero_infer/quantization.h"
#include "zero_infer/weight_source.h"

namespace zi {

/// The directory of a model: `model` itself when it is a directory, else a name such as
/// `bigscience/bloom` looked up in the local Hugging Face cache (HF_HUB_CACHE, HF_HOME,
/// ~/.cache/huggingface/hub; the snapshot of refs/main, else the only one). Nothing is downloaded.
/// Throws CheckpointError with what was looked at and the download command.
std::filesystem::path resolve_model(const std::string& model);

/// Opens a safetensors checkpoint: reads the headers of model.safetensors, or without one of every
/// file that the index names, and checks them (offsets inside the file, no overlap, sizes that
/// match shape and type). Where both are there, `warnings` says which is used. Matrices that
/// another program has quantized as `quantization` says have packed rows. Tensors of other types
/// than BF16, F16 and F32 may be in the files; reading one is refused. Tensor names are looked up
/// with and without `prefix` (`transformer.`). Keeps the files open. Large reads bypass the page
/// cache (O_DIRECT) unless it holds their bytes; where the system refuses that, one line says so.
/// Throws CheckpointError or IoError. A directory with only pytorch_model*.bin is refused, with how
/// to convert it.
std::unique_ptr<WeightSource> open_checkpoint(const std::filesystem::path& directory,
                                              const std::string& prefix,
                                              const Quantization& quantization = {});

/// Seeded random weights, the same values for any world size, thread and order: element i of a
/// tensor is a pure function of (seed, tensor name, i). Matrices are uniform with standard
/// deviation 0.02, biases (vectors whose names end in `.bias`) are 0, all other vectors, the
/// weights of norms, are 1. Every tensor is present; `lm_head.weight` only with `own_head`.
std::unique_ptr<WeightSource> make_dummy_weights(std::uint64_t seed, DType stored,
                                                 bool own_head = false);

}  // namespace zi
