#include "engine/checkpoint_fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <set>
#include <string_view>

#include "base/printable_text.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// The number of the block to which a tensor belongs; nothing for those of no block.
std::optional<std::int64_t> block_of(const ModelSpec& spec, std::string_view name) {
  if (name.starts_with(spec.prefix)) name.remove_prefix(spec.prefix.size());
  if (spec.block_prefix.empty() || !name.starts_with(spec.block_prefix)) return std::nullopt;
  name.remove_prefix(spec.block_prefix.size());
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.') return std::nullopt;
  return number;
}

/// Blocks of which the checkpoint holds at least one tensor.
std::set<std::int64_t> blocks_held(const ModelSpec& spec, const std::vector<std::string>& names) {
  std::set<std::int64_t> held;
  for (const std::string& name : names) {
    if (const auto block = block_of(spec, name); block && *block >= 0) held.insert(*block);
  }
  return held;
}

void check_blocks(const ModelSpec& spec, const WeightSource& source,
                  const std::set<std::int64_t>& held, std::vector<std::string>& warnings) {
  // Without any the first tensor that is asked for says more.
  if (held.empty()) return;
  const auto wanted = static_cast<std::int64_t>(spec.blocks.size());
  for (std::int64_t block = 0; block < wanted; ++block) {
    if (held.contains(block)) continue;
    throw CheckpointError(fmt::format(
        "{}: config.json asks for {} blocks (n_layer or num_hidden_layers), the checkpoint holds "
        "{}; block {} is the "
        "first that is missing: a file is missing, or config.json belongs to another model",
        source.describe(), wanted, held.size(), block));
  }
  if (*held.rbegin() < wanted) return;
  std::int64_t whole = wanted;  // that a model can have: up to the first gap
  while (held.contains(whole)) ++whole;
  warnings.push_back(fmt::format(
      "{}: config.json asks for {} blocks (n_layer or num_hidden_layers), the checkpoint holds {}: "
      "those from block {} "
      "on are not used, and answers are those of the shorter model{}",
      source.describe(), wanted, held.size(), *held.lower_bound(wanted),
      whole > wanted ? fmt::format("; set it to {} to use {}", whole,
                                   whole == std::ssize(held) ? "all" : "those before the first gap")
                     : ""));
}

/// The same of packed ones, by rows.
bool rows_look_alike(const WeightSource& source, const TensorSpec& a, const TensorSpec& b,
                     std::size_t row_bytes) {
  constexpr std::int64_t kRows = 64;
  std::vector<std::byte> here(row_bytes), there(row_bytes);
  for (std::int64_t i = 0; i < kRows; ++i) {
    const std::int64_t row = (a.shape.front() - 1) * i / (kRows - 1);
    source.read_packed(a, row, 1, here.data());
    source.read_packed(b, row, 1, there.data());
    if (here != there) return false;
  }
  return true;
}

/// Whether two tensors of one shape hold the same values, by stretches spread over them.
bool look_alike(const WeightSource& source, const TensorSpec& a, const TensorSpec& b) {
  const std::optional<WeightFormat> packed = source.packed_format(a.name);
  if (packed != source.packed_format(b.name)) return false;
  if (packed) return rows_look_alike(source, a, b, packed->row_bytes(a.shape.back()));
  constexpr std::int64_t kStretches = 64;
  constexpr std::int64_t kValues = 1024;
  const std::int64_t count = std::min(kValues, a.elements());
  std::vector<std::uint32_t> here(static_cast<std::size_t>(count));  // bits: NaN equals itself
  std::vector<std::uint32_t> there(here);
  for (std::int64_t i = 0; i < kStretches; ++i) {
    const std::int64_t first = (a.elements() - count) / (kStretches - 1) * i;
    source.read(a, first, count, DType::kFloat32, here.data());
    source.read(b, first, count, DType::kFloat32, there.data());
    if (here != there) return false;
  }
  return true;
}

void check_head(const ModelConfig& config, const ModelSpec& spec, const WeightSource& source,
                std::vector<std::string>& warnings) {
  const bool stored = source.contains(kStoredHead);
  if (!stored && !config.tied_head) {
    throw CheckpointError(fmt::format(
        "{}: config.json says `tie_word_embeddings: false`, but the checkpoint has no {}; fetch "
        "the file that holds it, or set tie_word_embeddings to true if the embedding is the head",
        source.describe(), kStoredHead));
  }
  // A copy of the embedding, as converted pickles have it, is the tied head.
  if (!stored || !config.tied_head || look_alike(source, spec.head.matrices[0], spec.embedding)) {
    return;
  }
  warnings.push_back(fmt::format(
      "{}: config.json ties the head to the embedding (`tie_word_embeddings`), but the checkpoint "
      "stores {} with other values: the stored head is used, as Hugging Face transformers 5 does "
      "(version 4 used the embedding); set tie_word_embeddings to what is meant",
      source.describe(), kStoredHead));
}

/// The stored names that the model reads: the plain one goes before the one with the prefix.
std::set<std::string> names_used(const ModelSpec& spec, const std::set<std::string>& stored) {
  std::set<std::string> used;
  const auto use = [&](const std::vector<TensorSpec>& tensors) {
    for (const TensorSpec& t : tensors) {
      used.insert(stored.contains(t.name) ? t.name : spec.prefix + t.name);
    }
  };
  use({spec.embedding});
  use(spec.vectors);
  use(spec.head.matrices);
  use(spec.head.vectors);
  for (const UnitSpec& block : spec.blocks) {
    use(block.matrices);
    use(block.vectors);
  }
  return used;
}

/// Whether a tensor is a bias of zeros for one of the blocks' matrices. Some programs that quantize
/// write one for each matrix of a model that has none.
bool is_bias_of_nothing(const ModelSpec& spec, const WeightSource& source,
                        const std::string& name) {
  constexpr std::string_view kEnd = ".bias";
  if (!name.ends_with(kEnd)) return false;
  std::string matrix = name.substr(0, name.size() - kEnd.size()) + ".weight";
  if (matrix.starts_with(spec.prefix)) matrix.erase(0, spec.prefix.size());
  const std::optional<std::int64_t> block = block_of(spec, matrix);
  if (!block || *block < 0 || *block >= std::ssize(spec.blocks)) return false;
  const auto& matrices = spec.blocks[static_cast<std::size_t>(*block)].matrices;
  const auto found = std::ranges::find(matrices, matrix, &TensorSpec::name);
  if (found == matrices.end()) return false;
  std::vector<float> values(static_cast<std::size_t>(found->shape.front()));
  try {
    source.read({name, {found->shape.front()}}, 0, std::ssize(values), DType::kFloat32,
                values.data());
  } catch (const CheckpointError&) {
    return false;  // it has another shape, or a type that cannot be read
  }
  return std::ranges::all_of(values, [](float v) { return v == 0; });
}

void check_unused(const ModelSpec& spec, const WeightSource& source,
                  const std::vector<std::string>& names, std::vector<std::string>& warnings) {
  const auto used = names_used(spec, {names.begin(), names.end()});
  const auto wanted = static_cast<std::int64_t>(spec.blocks.size());
  std::vector<std::string> unused;
  for (const std::string& name : names) {
    const bool ignored = std::ranges::any_of(
        spec.ignored, [&](const std::string& end) { return name.ends_with(end); });
    // Whole blocks beyond the model's have a line of their own.
    if (!ignored && !used.contains(name) && block_of(spec, name).value_or(0) < wanted &&
        !is_bias_of_nothing(spec, source, name)) {
      unused.push_back(name);
    }
  }
  if (unused.empty()) return;
  warnings.push_back(
      fmt::format("{}: {} of the checkpoint's {} tensors are not used, such as {}: this version "
                  "has no part of the model for them, and answers may differ from what its authors "
                  "meant",
                  source.describe(), unused.size(), names.size(), in_quotes(unused.front())));
}

void check_ids(const ModelConfig& config, const WeightSource& source,
               std::vector<std::string>& warnings) {
  const auto check = [&](const char* key, std::int32_t id, const char* effect) {
    if (id < config.vocabulary) return;
    warnings.push_back(fmt::format("{}: `{}` {} is beyond the vocabulary of {}: {}",
                                   source.describe(), key, id, config.vocabulary, effect));
  };
  for (const std::int32_t id : config.eos_ids) check("eos_token_id", id, "nothing ends there");
  check("bos_token_id", config.bos_id, "no prompt begins with it");
  check("pad_token_id", config.pad_id, "no text has it");
}

}  // namespace

std::vector<std::string> check_fit(const ModelConfig& config, const ModelSpec& spec,
                                   const WeightSource& source) {
  std::vector<std::string> warnings;
  const std::vector<std::string> names = source.names();
  check_head(config, spec, source, warnings);
  check_blocks(spec, source, blocks_held(spec, names), warnings);
  check_unused(spec, source, names, warnings);
  check_ids(config, source, warnings);
  return warnings;
}

}  // namespace zi
