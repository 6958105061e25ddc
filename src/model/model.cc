#include "zero_infer/model.h"

#include <fmt/format.h>

#include "base/printable_text.h"
#include "model/bloom.h"
#include "zero_infer/error.h"

namespace zi {

std::unique_ptr<Model> make_model(const ModelConfig& config, bool has_lm_head) {
  if (config.family == "bloom") return std::make_unique<Bloom>(config, has_lm_head);
  throw CheckpointError(fmt::format(
      "models of type {} are not supported; this version runs `bloom`", in_quotes(config.family)));
}

}  // namespace zi
