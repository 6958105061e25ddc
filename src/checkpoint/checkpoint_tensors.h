#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "checkpoint/quantized_matrix.h"
#include "checkpoint/safetensors.h"
#include "zero_infer/dtype.h"
#include "zero_infer/quantization.h"
#include "zero_infer/weight_format.h"

namespace zi {

/// A tensor of a checkpoint, or a quantized matrix in the place of the tensors of which it is made.
struct CheckpointTensor {
  std::size_t file = 0;
  StoredTensor tensor;
  std::optional<WeightFormat> packed;                          // its rows are packed
  DType elements = DType::kBFloat16;                           // that they had
  std::shared_ptr<const QuantizedMatrix> quantized = nullptr;  // by another program
};

/// The files of a directory, opened, and where each tensor is.
struct CheckpointTensors {
  std::vector<SafetensorsFile> files;
  std::unordered_map<std::string, CheckpointTensor> tensors;
  std::vector<std::string> warnings;
  std::string quantization;  // all that decides the values, beside the tensors
};

/// Opens the single file of a directory, or all files that its index names. Throws as
/// open_checkpoint.
CheckpointTensors open_tensors(const std::filesystem::path& directory,
                               const Quantization& quantization);

}  // namespace zi
