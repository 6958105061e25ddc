#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "zero_infer/dtype.h"
#include "zero_infer/model.h"
#include "zero_infer/partition_layout.h"
#include "zero_infer/run_config.h"
#include "zero_infer/weight_format.h"
#include "zero_infer/weight_source.h"

namespace zi {

/// A model as the config names it, before any of its weights are read: what a run and a plan are
/// both made from.
struct OpenModel {
  std::filesystem::path directory;
  std::unique_ptr<WeightSource> source;
  std::unique_ptr<Model> model;
  DType stored_dtype = DType::kBFloat16;   // of the blocks' matrices in the source
  DType element_dtype = DType::kBFloat16;  // of matrices that are not packed, when they rest
  // In which they are packed in the source; none where its elements are stored.
  std::optional<WeightFormat> packed_blocks;
  std::optional<WeightFormat> packed_head;  // of head and embedding
  WeightFormat block_format;                // in which the blocks rest and travel
  // Of their matrices that have another, by name: those that were left out when others were
  // quantized.
  std::map<std::string, WeightFormat> other_formats;
  WeightFormat head_format;                // and head and embedding
  DType compute_dtype = DType::kBFloat16;  // of the products' inputs and of the KV cache
  bool assumed = false;                    // no weights are there: bfloat16 was assumed
  std::vector<std::string> warnings;       // a line each, for one rank to print

  MatrixFormats block_formats() const { return {block_format, other_formats}; }
};

/// How the weights of a model rest and travel.
struct WeightFormats {
  WeightFormat blocks;
  WeightFormat head;  // and embedding
};

/// What --weight-format and --head-format of the config ask of this model. Throws CheckpointError
/// for weights that are stored packed in another format. Cheap: a plan asks for each of its tries.
WeightFormats weight_formats(const OpenModel& open, const RunConfig& config);

/// What to do about a model directory that holds a config.json and no weights at all.
enum class MissingWeights { kRefuse, kAssume };

/// What makes the products of a run, which decides their type unless the config does. A CPU makes
/// products of float16 in float32, and those of bfloat16 faster where it has instructions for them:
/// there, bfloat16 is the type for packed weights, whose values are less precise than either. kAny
/// takes the weights' own.
enum class ProductsOf { kAny, kCpu };

/// Reads config.json and, unless weights are dummies, the headers of the checkpoint. Throws
/// CheckpointError for a model that is not there or cannot be used, whose config.json asks for what
/// the checkpoint does not hold, or which is packed in several formats. What the checkpoint holds
/// and the model does not use is among the warnings.
OpenModel open_model(const RunConfig& config, MissingWeights missing = MissingWeights::kRefuse,
                     ProductsOf products = ProductsOf::kAny);

}  // namespace zi
