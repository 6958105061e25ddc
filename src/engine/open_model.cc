#include "engine/open_model.h"

#include <string>
#include <system_error>

#include "engine/checkpoint_fit.h"
#include "zero_infer/checkpoint.h"

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

WeightFormat format_of(WeightChoice choice, DType elements) {
  switch (choice) {
    case WeightChoice::kStored:
      break;
    case WeightChoice::kInt8:
      return kInt8Weights;
    case WeightChoice::kInt4:
      return kInt4Weights;
  }
  return elements;
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

OpenModel open_model(const RunConfig& config, MissingWeights missing) {
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
    open.source = open_checkpoint(open.directory, prefix);
  }
  open.model = make_model(model_config, open.source->contains(kStoredHead));
  open.warnings = open.source->warnings();
  if (!dummy && !open.assumed) {
    const auto more = check_fit(model_config, open.model->spec(), *open.source);
    open.warnings.insert(open.warnings.end(), more.begin(), more.end());
    warn_of_adapter(open);
  }
  open.stored_dtype =
      open.source->stored_dtype(open.model->spec().blocks.front().matrices.front().name);
  open.compute_dtype = config.compute_dtype.value_or(
      open.stored_dtype == DType::kFloat32 ? DType::kBFloat16 : open.stored_dtype);
  // In float32 the weights keep their stored values; else they are converted once, while loading.
  const DType elements =
      open.compute_dtype == DType::kFloat32 ? open.stored_dtype : open.compute_dtype;
  open.block_format = format_of(config.weight_format, elements);
  open.head_format = format_of(config.head_format, elements);
  return open;
}

}  // namespace zi
