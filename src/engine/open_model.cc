#include "engine/open_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "base/printable_text.h"
#include "checkpoint/quantization.h"
#include "engine/checkpoint_fit.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Whether any file looks like weights, be it of a kind that is refused.
bool holds_weights(const std::filesystem::path& directory) {
  std::error_code code;
  std::filesystem::directory_iterator entry(directory, code);
  for (const std::filesystem::directory_iterator end; !code && entry != end;
       entry.increment(code)) {
    const std::string name = entry->path().filename().string();
    if (name.find(".safetensors") != std::string::npos || name.ends_with(".bin")) return true;
  }
  return false;
}

std::string named(const std::optional<WeightFormat>& format) {
  return format ? describe(*format) : std::string("elements that are not packed");
}

/// Formats that are described alike have different names.
std::string with_name(const WeightFormat& format) {
  if (!format.packed()) return describe(format);
  return fmt::format("{} ({})", describe(format), name_of(format));
}

std::optional<WeightFormat> format_of(WeightChoice choice) {
  switch (choice) {
    case WeightChoice::kAuto:
    case WeightChoice::kStored:
      break;
    case WeightChoice::kInt8:
      return kInt8Weights;
    case WeightChoice::kInt4:
      return kInt4Weights;
  }
  return std::nullopt;
}

/// A part of the model, and the flag that chooses its format.
struct Part {
  const char* what;
  const char* flag;

  std::string key() const {
    std::string key = flag;
    std::ranges::replace(key, '-', '_');
    return key;
  }
};
constexpr Part kBlocks{"the blocks", "weight-format"};
constexpr Part kHeadAndEmbedding{"head and embedding", "head-format"};

/// The one format in which matrices of a part are packed in the checkpoint. `in_config`: the name
/// of the format of which config.json speaks.
std::optional<WeightFormat> packed_format(const OpenModel& open, const Part& part,
                                          const std::string& in_config,
                                          const std::vector<const TensorSpec*>& matrices) {
  const std::optional<WeightFormat> promised = packed_format_named(in_config);
  if (open.source->names().empty()) return promised;  // no files: those of config.json are meant
  const TensorSpec& first = *matrices.front();
  const std::optional<WeightFormat> packed = open.source->packed_format(first.name);
  if (!in_config.empty() && packed != promised && open.source->contains(first.name)) {
    throw CheckpointError(fmt::format(
        "{}: {} is stored in {}, but config.json (`quantization_config.{}`) says {}: it belongs to "
        "another checkpoint; pack it again",
        open.source->describe(), in_quotes(first.name), named(packed), part.key(), in_config));
  }
  for (const TensorSpec* other : matrices) {
    const std::optional<WeightFormat> its = open.source->packed_format(other->name);
    if (its == packed || !open.source->contains(other->name)) continue;
    throw CheckpointError(
        fmt::format("{}: {} is stored in {}, {} in {}: {} have one format; pack the checkpoint "
                    "again",
                    open.source->describe(), in_quotes(first.name), named(packed),
                    in_quotes(other->name), named(its), part.what));
  }
  return packed;
}

/// Matrices of a product have one format.
void check_products(const OpenModel& open, const UnitSpec& block) {
  const MatrixFormats formats = open.block_formats();
  std::size_t first = 0;
  for (const int count : block.products) {
    const std::size_t end = first + static_cast<std::size_t>(count);
    const std::string& name = block.matrices[first].name;
    for (std::size_t i = first + 1; i < end; ++i) {
      const std::string& other = block.matrices[i].name;
      if (formats.of(other) == formats.of(name)) continue;
      throw CheckpointError(fmt::format(
          "{}: {} is stored in {}, {} in {}: they are multiplied together and have one format; use "
          "a checkpoint that has them quantized alike",
          open.source->describe(), in_quotes(name), with_name(formats.of(name)), in_quotes(other),
          with_name(formats.of(other))));
    }
    first = end;
  }
}

/// The formats of blocks of which another program has quantized matrices: that of the first one,
/// and those of the matrices that have another, or were left as they were.
void take_quantized_formats(OpenModel& open, const Quantization& quantization) {
  const std::vector<UnitSpec>& blocks = open.model->spec().blocks;
  if (open.source->names().empty()) {  // no files: what config.json says is meant
    open.packed_blocks = quantization.format;
    return;
  }
  for (const TensorSpec* matrix :
       {&open.model->spec().head.matrices.front(), &open.model->spec().embedding}) {
    if (!open.source->packed_format(matrix->name)) continue;
    throw CheckpointError(fmt::format(
        "{}: {} is quantized: heads and embeddings that are quantized are not supported; use a "
        "checkpoint that has them in 16 bits",
        open.source->describe(), in_quotes(matrix->name)));
  }
  for (const UnitSpec& block : blocks) {
    for (const TensorSpec& matrix : block.matrices) {
      if (!open.packed_blocks) open.packed_blocks = open.source->packed_format(matrix.name);
    }
  }
  if (!open.packed_blocks) return;
  for (const UnitSpec& block : blocks) {
    for (const TensorSpec& matrix : block.matrices) {
      const WeightFormat format =
          open.source->packed_format(matrix.name).value_or(open.element_dtype);
      if (format != *open.packed_blocks) open.other_formats.emplace(matrix.name, format);
    }
  }
}

/// `usual`: where nothing is chosen, and the checkpoint is not packed.
WeightFormat format_of(const OpenModel& open, const Part& part, WeightChoice choice,
                       const std::optional<WeightFormat>& packed, const WeightFormat& usual) {
  const std::optional<WeightFormat> chosen = format_of(choice);
  if (!packed) return chosen.value_or(usual);
  if (!chosen || chosen == packed) return *packed;
  throw CheckpointError(fmt::format(
      "{}: {} are stored in {}, --{} asks for {}: leave it out, or give a checkpoint in which "
      "they are not quantized",
      open.assumed ? (open.directory / "config.json").string() : open.source->describe(), part.what,
      with_name(*packed), part.flag, with_name(*chosen)));
}

/// The reference loads the adapter on top of the weights.
void warn_of_adapter(OpenModel& open) {
  std::error_code code;
  if (!std::filesystem::exists(open.directory / "adapter_config.json", code)) return;
  open.warnings.push_back(open.directory.string() +
                          " holds an adapter (adapter_config.json), which is not applied: merge it "
                          "into the weights first (peft: merge_and_unload), or remove it");
}

}  // namespace

OpenModel open_model(const RunConfig& config, MissingWeights missing, ProductsOf products) {
  OpenModel open;
  open.directory = resolve_model(config.model);
  if (open.directory.filename().empty()) open.directory = open.directory.parent_path();
  const ModelConfig model_config = ModelConfig::load(open.directory);
  // Named once without knowing whether there is a head of its own, to learn the prefix.
  const std::string prefix = make_model(model_config, false)->spec().prefix;
  const bool dummy = config.load_format == LoadFormat::kDummy;
  open.assumed = !dummy && missing == MissingWeights::kAssume && !holds_weights(open.directory);
  if (dummy || open.assumed) {
    const DType stored = dummy ? config.compute_dtype.value_or(DType::kBFloat16) : DType::kBFloat16;
    open.source = make_dummy_weights(config.seed, stored, !model_config.tied_head);
  } else {
    open.source = open_checkpoint(open.directory, prefix, model_config.quantization);
  }
  open.model = make_model(model_config, open.source->contains(kStoredHead));
  open.warnings = open.source->warnings();
  if (!dummy && !open.assumed) {
    const auto more = check_fit(model_config, open.model->spec(), *open.source);
    open.warnings.insert(open.warnings.end(), more.begin(), more.end());
    warn_of_adapter(open);
  }
  if (!dummy) {
    const auto of_weights = quantization_warnings(
        model_config.quantization, (open.directory / "config.json").string(), open.assumed);
    open.warnings.insert(open.warnings.end(), of_weights.begin(), of_weights.end());
  }
  open.stored_dtype =
      open.source->stored_dtype(open.model->spec().blocks.front().matrices.front().name);
  const bool packed = config.weight_format != WeightChoice::kStored ||
                      model_config.quantization.layout != Quantization::Layout::kNone ||
                      !model_config.block_format.empty();
  const bool own =
      open.stored_dtype != DType::kFloat32 && !(packed && products == ProductsOf::kCpu);
  open.compute_dtype = config.compute_dtype.value_or(own ? open.stored_dtype : DType::kBFloat16);
  // In float32 the weights keep their stored values; else they are converted once, while loading.
  open.element_dtype =
      open.compute_dtype == DType::kFloat32 ? open.stored_dtype : open.compute_dtype;
  const ModelSpec& spec = open.model->spec();
  std::vector<const TensorSpec*> matrices;
  for (const UnitSpec& block : spec.blocks) {
    for (const TensorSpec& matrix : block.matrices) matrices.push_back(&matrix);
  }
  if (model_config.quantization.layout != Quantization::Layout::kNone) {
    take_quantized_formats(open, model_config.quantization);
  } else {
    open.packed_blocks = packed_format(open, kBlocks, model_config.block_format, matrices);
  }
  open.packed_head = packed_format(open, kHeadAndEmbedding, model_config.head_format,
                                   {&spec.head.matrices.front(), &spec.embedding});
  const WeightFormats formats = weight_formats(open, config);
  open.block_format = formats.blocks;
  open.head_format = formats.head;
  for (const UnitSpec& block : spec.blocks) check_products(open, block);
  return open;
}

WeightFormats weight_formats(const OpenModel& open, const RunConfig& config) {
  const WeightFormat elements = open.element_dtype;
  // A head in int8 differs less from one in 16 bits than blocks in int8 do, and halves what it
  // takes.
  const bool packs = config.weight_format != WeightChoice::kStored;
  const bool packs_head = config.head_format == WeightChoice::kAuto && packs;
  return {format_of(open, kBlocks, config.weight_format, open.packed_blocks, elements),
          format_of(open, kHeadAndEmbedding, config.head_format, open.packed_head,
                    packs_head ? kInt8Weights : elements)};
}

}  // namespace zi
