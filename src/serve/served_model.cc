#include "serve/served_model.h"

#include <utility>

#include "zero_infer/ops.h"

namespace zi {

ServedModel::ServedModel(std::string name, const Tokenizer& tokenizer, GenerationOptions options,
                         std::int64_t cached_tokens, std::filesystem::path directory,
                         RequestDefaults defaults)
    : name_(std::move(name)),
      tokenizer_(&tokenizer),
      options_(std::move(options)),
      admission_(tokenizer, options_, cached_tokens),
      directory_(std::move(directory)),
      chat_(directory_),
      defaults_(defaults) {}

ServedModel::ServedModel(const Engine& engine, std::string name, RequestDefaults defaults)
    : ServedModel(std::move(name), engine.tokenizer(), engine.generation_options(),
                  engine.plan().kv_pages * kKvPageTokens, engine.directory(), defaults) {}

}  // namespace zi
