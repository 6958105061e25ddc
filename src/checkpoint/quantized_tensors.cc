#include "checkpoint/quantized_tensors.h"

#include <map>
#include <optional>
#include <utility>

namespace zi {
namespace {

using Layout = Quantization::Layout;

constexpr std::string_view kMatrixEnd = ".weight";
constexpr std::string_view kTransposedCodes = ".qweight";
constexpr std::string_view kPackedCodes = ".weight_packed";

std::string_view end_of_codes(Layout layout) {
  switch (layout) {
    case Layout::kGptq:
    case Layout::kAwq:
      return kTransposedCodes;
    case Layout::kPacked:
      return kPackedCodes;
    default:
      return kMatrixEnd;
  }
}

/// A tensor of this name may hold codes or elements.
bool holds_codes(Layout layout, const StoredTensor& tensor) {
  if (layout == Layout::kInt8) return tensor.dtype == "I8";
  if (layout == Layout::kFloat8) return tensor.dtype.starts_with("F8_");
  return true;
}

/// Takes the parts of one matrix out of the tensors.
class PartsOf {
 public:
  PartsOf(const std::map<std::string, const TensorInFile*>& tensors, std::string stem,
          std::vector<std::string>& used)
      : tensors_(&tensors), stem_(std::move(stem)), used_(&used) {}

  std::optional<TensorInFile> take(std::string_view end) {
    const auto found = tensors_->find(stem_ + std::string(end));
    if (found == tensors_->end()) return std::nullopt;
    used_->push_back(found->first);
    return *found->second;
  }

  QuantizedParts parts(Layout layout) {
    QuantizedParts parts;
    parts.codes = take(end_of_codes(layout));
    if (layout == Layout::kGptq || layout == Layout::kAwq) {
      parts.scales = take(".scales");
      parts.zeros = take(".qzeros");
      parts.order = take(".g_idx");
      return parts;
    }
    parts.scales = take(".weight_scale");
    if (!parts.scales) parts.scales = take(".weight_scale_inv");
    parts.zeros = take(".weight_zero_point");
    parts.order = take(".weight_g_idx");
    parts.shape = take(".weight_shape");
    // Of the inputs and outputs of products, which stay in 16 bits.
    for (const char* end : {".input_scale", ".input_zero_point", ".output_scale",
                            ".output_zero_point", ".activation_scale"}) {
      take(end);
    }
    return parts;
  }

 private:
  const std::map<std::string, const TensorInFile*>* tensors_;
  std::string stem_;
  std::vector<std::string>* used_;
};

}  // namespace

QuantizedTensors find_quantized(const Quantization& quantization,
                                const std::vector<TensorInFile>& tensors) {
  QuantizedTensors found;
  if (quantization.layout == Layout::kNone) return found;
  std::map<std::string, const TensorInFile*> by_name;
  for (const TensorInFile& tensor : tensors) by_name.emplace(tensor.name, &tensor);
  const std::string_view end = end_of_codes(quantization.layout);
  for (const auto& [name, tensor] : by_name) {
    if (!name.ends_with(end) || !holds_codes(quantization.layout, *tensor->tensor)) continue;
    std::string stem = name.substr(0, name.size() - end.size());
    std::string matrix = stem + std::string(kMatrixEnd);
    QuantizedParts parts = PartsOf(by_name, std::move(stem), found.used).parts(quantization.layout);
    auto made = std::make_shared<const QuantizedMatrix>(matrix, quantization, std::move(parts));
    found.matrices.push_back({std::move(matrix), std::move(made)});
  }
  return found;
}

std::vector<std::string> names_of_codes(std::string_view matrix) {
  if (!matrix.ends_with(kMatrixEnd)) return {};
  const std::string stem(matrix.substr(0, matrix.size() - kMatrixEnd.size()));
  return {stem + std::string(kTransposedCodes), stem + std::string(kPackedCodes)};
}

}  // namespace zi
