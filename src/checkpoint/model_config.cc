#include "zero_infer/model_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "base/json_file.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

using Names = std::initializer_list<const char*>;

constexpr std::size_t kMaxConfigBytes = std::size_t{16} << 20;
constexpr std::size_t kMaxConfigDepth = 64;
// Upper limits far above any model: whatever a config.json says, the bytes of the whole model stay
// far below 2^63 (each is looked at once and can be summed up in peace), and lists by layer, by
// head or of ids stay short.
constexpr std::int64_t kMostHidden = std::int64_t{1} << 20;
constexpr std::int64_t kMostLayers = 4096;
constexpr std::int64_t kMostHeads = 4096;
constexpr std::int64_t kMostFfn = std::int64_t{1} << 24;
constexpr std::int64_t kMostVocabulary = std::numeric_limits<std::int32_t>::max();
constexpr double kMostParameters = 1e15;
constexpr std::size_t kMostIds = 1024;

/// Reads typed keys of one JSON file; a message names file, key and value.
class KeyReader {
 public:
  KeyReader(std::string_view text, std::string file)
      : file_(std::move(file)), root_(parse_json_object(text, file_, kMaxConfigDepth)) {}

  std::string text(const char* key) const {
    const json* value = find({key});
    if (value == nullptr) fail_missing({key});
    if (!value->is_string()) fail(key, *value, "a string");
    return value->get<std::string>();
  }

  /// A size from 1 to `most` under one of the names.
  std::int64_t size(Names names, std::int64_t most) const {
    const std::optional<std::int64_t> value = optional_size(names, most);
    if (!value) fail_missing(names);
    return *value;
  }

  std::optional<std::int64_t> optional_size(Names names, std::int64_t most) const {
    std::optional<std::int64_t> found;
    for (const char* name : names) {
      const json* value = find({name});
      if (value == nullptr) continue;
      const bool fits = value->is_number_unsigned() && value->get<std::uint64_t>() >= 1 &&
                        value->get<std::uint64_t>() <= static_cast<std::uint64_t>(most);
      if (!fits) fail(name, *value, fmt::format("a whole number from 1 to {}", most));
      const auto number = value->get<std::int64_t>();
      if (found && *found != number) {
        throw CheckpointError(fmt::format(
            "{}: {} mean the same but have different values, {} and {}; remove the wrong one",
            file_, join(names), *found, number));
      }
      found = number;
    }
    return found;
  }

  float positive(const char* key, float absent) const {
    const json* value = find({key});
    if (value == nullptr) return absent;
    const float number = value->is_number() ? value->get<float>() : 0.0f;
    if (!(number > 0) || !std::isfinite(number)) fail(key, *value, "a finite number above 0");
    return number;
  }

  bool flag(const char* key, bool absent) const {
    const json* value = find({key});
    if (value == nullptr) return absent;
    if (!value->is_boolean()) fail(key, *value, "true or false");
    return value->get<bool>();
  }

  /// Token ids: a number, a list of numbers, or null. Negative ids mean none.
  std::vector<std::int32_t> ids(const char* key) const {
    const json* value = find({key});
    if (value == nullptr) return {};
    if (value->is_array() && value->size() > kMostIds) {
      throw CheckpointError(fmt::format("{}: `{}` has {} token ids; {} at most are supported",
                                        file_, key, value->size(), kMostIds));
    }
    std::vector<std::int32_t> ids;
    for (const json& item : value->is_array() ? *value : json::array({*value})) {
      const bool fits = item.is_number_integer() &&
                        (!item.is_number_unsigned() ||
                         item.get<std::uint64_t>() <= std::numeric_limits<std::int32_t>::max());
      if (!fits) fail(key, *value, "a token id");
      const auto id = item.get<std::int64_t>();
      if (id >= 0) ids.push_back(static_cast<std::int32_t>(id));
    }
    return ids;
  }

  std::int32_t id(const char* key) const {
    const std::vector<std::int32_t> list = ids(key);
    return list.empty() ? -1 : list.front();
  }

  const std::string& file() const { return file_; }

 private:
  /// Null where the key is missing or null: both mean the default.
  const json* find(Names names) const {
    for (const char* name : names) {
      const auto found = root_.find(name);
      if (found != root_.end() && !found->is_null()) return &*found;
    }
    return nullptr;
  }
  static std::string join(Names names) { return fmt::format("`{}`", fmt::join(names, "` or `")); }
  [[noreturn]] void fail_missing(Names names) const {
    throw CheckpointError(fmt::format(
        "{}: {} is missing; this is not the config.json of a supported model, or it is damaged",
        file_, join(names)));
  }
  [[noreturn]] void fail(const char* key, const json& value, const std::string& expected) const {
    throw CheckpointError(fmt::format(
        "{}: `{}` is {}, expected {}", file_, key,
        in_quotes(value.dump(-1, ' ', false, json::error_handler_t::replace)), expected));
  }

  std::string file_;
  json root_;
};

/// Sizes that are each within their limits can still multiply to a model that nobody has.
void check_size(const ModelConfig& c, const std::string& file) {
  const auto hidden = static_cast<double>(c.hidden);
  const double block = hidden * (4 * hidden + 2 * static_cast<double>(c.ffn));
  const double parameters =
      static_cast<double>(c.layers) * block + 2 * hidden * static_cast<double>(c.vocabulary);
  if (parameters <= kMostParameters) return;
  throw CheckpointError(fmt::format(
      "{}: {} layers of a hidden size of {} and an MLP of {}, with {} tokens, are about {:.1e} "
      "parameters; models of up to {:.0e} are supported: the file is damaged",
      file, c.layers, c.hidden, c.ffn, c.vocabulary, parameters, kMostParameters));
}

}  // namespace

ModelConfig ModelConfig::load(const fs::path& directory) {
  std::error_code code;
  if (!fs::is_directory(directory, code)) {
    throw CheckpointError(fmt::format("{} is not a directory", directory.string()));
  }
  const fs::path config = directory / "config.json";
  if (!fs::exists(config, code) && !code) {
    throw CheckpointError(fmt::format(
        "{} has no config.json; give the directory of a model as Hugging Face publishes it",
        directory.string()));
  }
  const fs::path generation = directory / "generation_config.json";
  std::optional<std::string> text;
  if (fs::exists(generation, code)) text = read_text_file(generation, kMaxConfigBytes);
  return parse(read_text_file(config, kMaxConfigBytes), text, directory);
}

ModelConfig ModelConfig::parse(std::string_view config_json,
                               const std::optional<std::string>& generation_config_json,
                               const fs::path& directory) {
  const KeyReader keys(config_json, (directory / "config.json").string());
  ModelConfig config;
  config.family = keys.text("model_type");
  config.hidden = keys.size({"n_embed", "hidden_size"}, kMostHidden);
  config.layers = keys.size({"n_layer", "num_hidden_layers"}, kMostLayers);
  config.heads = keys.size({"n_head", "num_attention_heads"}, kMostHeads);
  config.ffn = keys.optional_size({"n_inner"}, kMostFfn).value_or(4 * config.hidden);
  config.vocabulary = keys.size({"vocab_size"}, kMostVocabulary);
  config.norm_epsilon = keys.positive("layer_norm_epsilon", config.norm_epsilon);
  config.residual_after_norm =
      keys.flag("apply_residual_connection_post_layernorm", config.residual_after_norm);
  config.tied_head = keys.flag("tie_word_embeddings", config.tied_head);
  config.eos_ids = keys.ids("eos_token_id");
  config.bos_id = keys.id("bos_token_id");
  config.pad_id = keys.id("pad_token_id");
  if (config.hidden % config.heads != 0) {
    throw CheckpointError(fmt::format("{}: {} heads do not divide a hidden size of {}", keys.file(),
                                      config.heads, config.hidden));
  }
  config.head_dim = config.hidden / config.heads;
  check_size(config, keys.file());
  if (generation_config_json) {
    // The ids at which the model's authors want generation to stop take precedence over those of
    // training.
    const KeyReader generation(*generation_config_json,
                               (directory / "generation_config.json").string());
    std::vector<std::int32_t> ids = generation.ids("eos_token_id");
    if (!ids.empty()) config.eos_ids = std::move(ids);
  }
  return config;
}

std::vector<ConfigValue> ModelConfig::values() const {
  // This does not compile when a member is added: list it below.
  const auto& [family_, hidden_, layers_, heads_, head_dim_, ffn_, vocabulary_, norm_epsilon_,
               residual_after_norm_, tied_head_, eos_ids_, bos_id_, pad_id_] = *this;
  return {{"model_type", family_},
          {"hidden_size", fmt::to_string(hidden_)},
          {"n_layer", fmt::to_string(layers_)},
          {"n_head", fmt::to_string(heads_)},
          {"head_dim", fmt::to_string(head_dim_)},
          {"n_inner", fmt::to_string(ffn_)},
          {"vocab_size", fmt::to_string(vocabulary_)},
          {"layer_norm_epsilon", fmt::to_string(norm_epsilon_)},
          {"apply_residual_connection_post_layernorm", fmt::to_string(residual_after_norm_)},
          {"tie_word_embeddings", fmt::to_string(tied_head_)},
          {"eos_token_id", fmt::format("[{}]", fmt::join(eos_ids_, ", "))},
          {"bos_token_id", fmt::to_string(bos_id_)},
          {"pad_token_id", fmt::to_string(pad_id_)}};
}

}  // namespace zi
