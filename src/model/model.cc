#include "zero_infer/model.h"

#include "model/decoder.h"
#include "model/family.h"

namespace zi {

std::unique_ptr<Model> make_model(const ModelConfig& config, bool has_lm_head) {
  return std::make_unique<Decoder>(config, family_of(config), has_lm_head);
}

KvLayer kv_layer(const ModelConfig& config, DType dtype) {
  return {.data = nullptr,
          .dtype = dtype,
          .heads = static_cast<int>(config.kv_heads),
          .head_dim = static_cast<int>(config.head_dim)};
}

std::size_t kv_token_bytes(const ModelConfig& config, DType dtype) {
  return kv_layer(config, dtype).page_bytes() / kKvPageTokens *
         static_cast<std::size_t>(config.layers);
}

}  // namespace zi
