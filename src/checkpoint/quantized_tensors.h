#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/content_samples.h"
#include "checkpoint/quantized_matrix.h"
#include "zero_infer/quantization.h"

namespace zi {

/// A quantized matrix, under the name that the matrix has in a checkpoint of elements.
struct FoundMatrix {
  std::string name;
  std::shared_ptr<const QuantizedMatrix> matrix;
};

struct QuantizedTensors {
  std::vector<FoundMatrix> matrices;
  std::vector<std::string> used;  // tensors of which they are made, and those beside that they need
};

/// The quantized matrices among the tensors of a checkpoint. Throws CheckpointError for one of
/// which a part is missing or has a type that is none of it, and for a part that is of none.
QuantizedTensors find_quantized(const Quantization& quantization,
                                const std::vector<TensorInFile>& tensors);

/// Names under which the codes of a matrix may stand that is not stored as elements.
std::vector<std::string> names_of_codes(std::string_view matrix);

}  // namespace zi
