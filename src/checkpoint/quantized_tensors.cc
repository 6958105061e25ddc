#include "checkpoint/quantized_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/printable_text.h"
#include "checkpoint/safetensors.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using Layout = Quantization::Layout;
using ByName = std::map<std::string, const TensorInFile*>;

constexpr std::string_view kMatrixEnd = ".weight";
constexpr std::string_view kTransposedCodes = ".qweight";
constexpr std::string_view kPackedCodes = ".weight_packed";

constexpr std::string_view kTransposedScales = ".scales";
/// Ends of the names of what belongs to a quantized matrix.
constexpr std::string_view kPartEnds[] = {
    kTransposedCodes,  kTransposedScales, ".qzeros",           ".g_idx",
    kPackedCodes,      ".weight_scale",   ".weight_scale_inv", ".weight_zero_point",
    ".weight_g_idx",   ".weight_shape",   ".weight_scale_2",   ".weight_global_scale",
    ".pre_quant_scale"};
/// Of keys and values, and of what attention makes of them.
constexpr std::string_view kCacheEnds[] = {".k_scale", ".v_scale", ".kv_scale", ".q_scale",
                                           ".prob_scale"};

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
  PartsOf(const ByName& tensors, std::string stem, std::vector<std::string>& used)
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
      parts.scales = take(kTransposedScales);
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
  const ByName* tensors_;
  std::string stem_;
  std::vector<std::string>* used_;
};

/// Says why a part of a quantized matrix that no matrix has used cannot be used. Passed over it
/// would make other values than its program meant.
[[noreturn]] void throw_leftover(const TensorInFile& part, std::string_view end, Layout layout,
                                 const ByName& tensors, const std::set<std::string_view>& used) {
  const std::string stem = part.name.substr(0, part.name.size() - end.size());
  const auto weight = tensors.find(stem + std::string(kMatrixEnd));
  const auto is_used = [&](std::string_view codes) {
    return used.contains(stem + std::string(codes));
  };
  std::string what;
  if (is_used(end_of_codes(layout))) {
    what =
        "belongs to a quantized matrix, and this version does not know it there; use a checkpoint "
        "without, or in 16 bits";
  } else if (weight != tensors.end()) {
    what = fmt::format(
        "is a part of a quantized matrix, but {} is stored as {}: tensors of two checkpoints are "
        "mixed, or `quantization_config` of config.json belongs to another one; fetch them again",
        in_quotes(weight->first), in_quotes(weight->second->tensor->dtype));
  } else if (end == kTransposedScales && layout == Layout::kAwq) {
    what =
        "scales what no quantized matrix holds: scaled activations are not supported; use a "
        "checkpoint in 16 bits, or one of another method";
  } else {
    what =
        "is a part of a quantized matrix without codes: a file is missing, or "
        "`quantization_config` of config.json does not say how the matrix is quantized";
  }
  throw CheckpointError(
      fmt::format("{}: tensor {} {}", part.file->path(), in_quotes(part.name), what));
}

void refuse_leftovers(Layout layout, const ByName& tensors, const std::vector<std::string>& names) {
  const std::set<std::string_view> used(names.begin(), names.end());
  for (const auto& [name, tensor] : tensors) {
    if (used.contains(name)) continue;
    const auto* const end = std::ranges::find_if(
        kPartEnds, [&name = name](std::string_view part) { return name.ends_with(part); });
    if (end == std::end(kPartEnds)) continue;
    if (layout == Layout::kNone) {  // codes are refused by who asks for them
      const auto weight = tensors.find(name.substr(0, name.size() - end->size()) + ".weight");
      if (weight == tensors.end() || !usable_dtype(weight->second->tensor->dtype)) continue;
    }
    throw_leftover(*tensor, *end, layout, tensors, used);
  }
}

}  // namespace

QuantizedTensors find_quantized(const Quantization& quantization,
                                const std::vector<TensorInFile>& tensors) {
  QuantizedTensors found;
  ByName by_name;
  for (const TensorInFile& tensor : tensors) by_name.emplace(tensor.name, &tensor);
  if (quantization.layout == Layout::kNone) {
    refuse_leftovers(quantization.layout, by_name, found.used);
    return found;
  }
  const std::string_view end = end_of_codes(quantization.layout);
  for (const auto& [name, tensor] : by_name) {
    if (!name.ends_with(end) || !holds_codes(quantization.layout, *tensor->tensor)) continue;
    std::string stem = name.substr(0, name.size() - end.size());
    std::string matrix = stem + std::string(kMatrixEnd);
    QuantizedParts parts = PartsOf(by_name, std::move(stem), found.used).parts(quantization.layout);
    auto made = std::make_shared<const QuantizedMatrix>(matrix, quantization, std::move(parts));
    found.matrices.push_back({std::move(matrix), std::move(made)});
  }
  // Keys and values stay in 16 bits, as a warning says.
  for (const auto& [name, tensor] : by_name) {
    const auto ends = [&name = name](std::string_view of_cache) {
      return name.ends_with(of_cache);
    };
    if (quantization.kv_cache && std::ranges::any_of(kCacheEnds, ends)) found.used.push_back(name);
  }
  refuse_leftovers(quantization.layout, by_name, found.used);
  return found;
}

std::vector<std::string> names_of_codes(std::string_view matrix) {
  if (!matrix.ends_with(kMatrixEnd)) return {};
  const std::string stem(matrix.substr(0, matrix.size() - kMatrixEnd.size()));
  return {stem + std::string(kTransposedCodes), stem + std::string(kPackedCodes)};
}

}  // namespace zi
