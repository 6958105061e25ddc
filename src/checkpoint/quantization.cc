#include "checkpoint/quantization.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <initializer_list>
#include <string_view>

#include "base/printable_text.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;
using CodeKind = WeightFormat::Kind;
using Layout = Quantization::Layout;

/// Columns of a group, as they may be written; no group is as long.
constexpr std::int64_t kMostGroup = std::int64_t{1} << 20;
constexpr std::int64_t kGroupMultiple = 16;
constexpr std::size_t kMostUnknown = 16;  // that are listed
constexpr const char* kMethods = "`gptq`, `awq`, `compressed-tensors` or `fp8`";

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

/// Notes the keys that nobody reads. Tools add keys of their own, about how they quantized, that
/// change nothing: they are named in a warning, and those that are known to change what is
/// computed are refused elsewhere.
void note_unknown(const ConfigKeys& keys, std::initializer_list<const char*> known,
                  Quantization& q) {
  for (const auto& [key, value] : keys.root().items()) {
    const auto is_key = [&key = key](const char* name) { return key == name; };
    const bool nothing = value.is_null() || (value.is_boolean() && !value.get<bool>());
    if (!nothing && std::ranges::none_of(known, is_key)) q.unknown.push_back(keys.name(key));
  }
}

/// `group_size`: -1 and null are whole rows.
std::int32_t group_of(const ConfigKeys& keys, std::int64_t absent) {
  const auto found = keys.root().find("group_size");
  std::int64_t group = absent;
  if (found != keys.root().end() && !found->is_null()) {
    if (!found->is_number_integer() ||
        (found->is_number_unsigned() && found->get<std::uint64_t>() > std::uint64_t{kMostGroup})) {
      keys.fail("group_size", "a multiple of 16, or -1");
    }
    group = found->get<std::int64_t>();
  }
  if (group == -1) return 0;
  if (group <= 0 || group % kGroupMultiple != 0) {
    keys.fail("group_size",
              "a multiple of 16, or -1: groups of other sizes are not supported; use a checkpoint "
              "with groups of 32, 64 or 128");
  }
  return static_cast<std::int32_t>(group);
}

CodeKind kind_of_bits(const ConfigKeys& keys, const char* key, std::int64_t absent,
                      std::initializer_list<std::int64_t> supported) {
  const std::int64_t bits = keys.optional_size({key}, 64).value_or(absent);
  if (std::ranges::find(supported, bits) == supported.end()) {
    keys.fail(key, fmt::format("{}: codes of other widths are not supported; use a checkpoint with "
                               "codes of 4 or 8 bits",
                               fmt::join(supported, " or ")));
  }
  return bits == 4 ? CodeKind::kInt4 : CodeKind::kInt8;
}

Quantization gptq(const ConfigKeys& keys) {
  Quantization q;
  q.layout = Layout::kGptq;
  const std::string format = lower(keys.optional_text("checkpoint_format")
                                       .value_or(keys.optional_text("format").value_or("gptq")));
  if (format != "gptq" && format != "gptq_v2") {
    keys.fail(
        keys.has("checkpoint_format") ? "checkpoint_format" : "format",
        "`gptq` or `gptq_v2`: weights in another order are not supported; use a checkpoint in "
        "one of these, or in 16 bits");
  }
  keys.refuse("is_marlin_format", "weights in the order of a kernel are");
  keys.refuse("dynamic", "other settings for some of the matrices are");
  keys.refuse("adapter", "an adapter is");
  keys.refuse("rotation", "rotated weights are");
  keys.refuse("lm_head", "a quantized head is");
  const auto packs = keys.optional_text("pack_dtype");
  if (packs && *packs != "int32") keys.fail("pack_dtype", "`int32`");
  q.method = format;
  q.symmetric = keys.flag("sym", true);
  q.zero_offset = format == "gptq" ? 1 : 0;
  q.symmetric_key = "sym";
  q.format = {kind_of_bits(keys, "bits", 0, {4, 8}), ScaleType::kFloat16, group_of(keys, 128),
              !q.symmetric};
  q.ordered = keys.flag("desc_act", false) && q.format.group != 0;
  note_unknown(keys,
               {"quant_method",
                "bits",
                "group_size",
                "sym",
                "desc_act",
                "checkpoint_format",
                "format",
                "pack_dtype",
                "true_sequential",
                "damp_percent",
                "static_groups",
                "model_name_or_path",
                "model_file_base_name",
                "batch_size",
                "block_name_to_quantize",
                "cache_block_outputs",
                "dataset",
                "max_input_length",
                "module_name_preceding_first_block",
                "modules_in_block_to_quantize",
                "pad_token_id",
                "tokenizer",
                "use_cuda_fp16",
                "use_exllama",
                "exllama_config",
                "disable_exllama",
                "model_seqlen",
                "backend",
                "meta",
                "damp_auto_increment",
                "act_group_aware",
                "hyb_act",
                "mse",
                "version",
                "is_marlin_format",
                "dynamic",
                "adapter",
                "rotation",
                "lm_head"},
               q);
  return q;
}

Quantization awq(const ConfigKeys& keys) {
  Quantization q;
  q.layout = Layout::kAwq;
  const std::string version =
      lower(keys.optional_text("version").value_or(keys.optional_text("format").value_or("gemm")));
  if (version != "gemm") {
    keys.fail(keys.has("version") ? "version" : "format",
              "`gemm`: weights in the order of another kernel are not supported");
  }
  const auto backend = keys.optional_text("backend");
  if (backend && lower(*backend) == "llm-awq") {
    keys.fail("backend", "that of AutoAWQ: weights in another order are not supported");
  }
  if (!keys.flag("zero_point", true)) {
    keys.fail("zero_point", "true: weights of this kind without zero points are not supported");
  }
  q.method = "awq";
  q.format = {kind_of_bits(keys, "bits", 4, {4}), ScaleType::kFloat16, group_of(keys, 128), true};
  note_unknown(
      keys,
      {"quant_method", "bits", "group_size", "zero_point", "version", "format", "backend",
       "modules_to_not_convert", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config",
       "desc_act", "sym", "damp_percent", "true_sequential", "act_group_aware", "meta"},
      q);
  return q;
}

/// Blocks (rows, columns) that share a scale.
void read_block(const ConfigKeys& keys, const char* key, Quantization& q) {
  const json& value = keys.root().at(key);
  const auto is_size = [](const json& v) {
    return v.is_number_unsigned() && v.get<std::uint64_t>() >= 1 &&
           v.get<std::uint64_t>() <= std::uint64_t{kMostGroup};
  };
  if (!value.is_array() || value.size() != 2 || !is_size(value[0]) || !is_size(value[1]) ||
      value[1].get<std::int64_t>() % kGroupMultiple != 0) {
    keys.fail(key, "[rows, columns] of a block, columns a multiple of 16, such as [128, 128]");
  }
  q.group_rows = value[0].get<std::int64_t>();
  q.format.group = value[1].get<std::int32_t>();
}

Quantization fp8(const ConfigKeys& keys) {
  Quantization q;
  q.layout = Layout::kFloat8;
  q.method = "fp8";
  q.format = {CodeKind::kFloat8, ScaleType::kFloat32, 0};
  const auto expect = [&](const char* key, const char* wanted) {
    const auto text = keys.optional_text(key);
    if (!text || lower(*text) == wanted) return;
    keys.fail(key, fmt::format("`{}`: others are not supported; use a checkpoint that has this, or "
                               "one in 16 bits",
                               wanted));
  };
  expect("fmt", "e4m3");
  expect("weight_format", "e4m3");
  expect("scale_fmt", "float");
  expect("expert_dtype", "fp8");
  keys.refuse("modules_to_convert", "a quantized embedding is");
  if (keys.has("weight_block_size")) read_block(keys, "weight_block_size", q);
  q.activations = keys.has("activation_scheme");
  q.kv_cache = keys.has("kv_cache_scheme") || keys.has("kv_cache_quant_method");
  note_unknown(keys,
               {"quant_method", "activation_scheme", "weight_block_size", "fmt", "weight_format",
                "scale_fmt", "expert_dtype", "modules_to_not_convert", "ignored_layers",
                "kv_cache_scheme", "kv_cache_quant_method", "dequantize", "modules_to_convert"},
               q);
  return q;
}

/// Whether columns may be in the order in which they were quantized: `weight` puts them back.
bool reads_order(const ConfigKeys& weights) {
  const auto found = weights.root().find("actorder");
  if (found == weights.root().end() || found->is_null()) return false;
  if (found->is_boolean()) return found->get<bool>();
  const std::string order = found->is_string() ? lower(found->get<std::string>()) : "";
  if (order == "group" || order == "dynamic") return true;
  if (order != "weight" && order != "static") {
    weights.fail("actorder", "`weight`, `static`, `group` or `dynamic`");
  }
  return false;
}

/// `weights` of the one group of compressed-tensors.
void read_weights(const ConfigKeys& weights, Quantization& q) {
  const std::string type = weights.optional_text("type").value_or("int");
  // As the library takes it where it is not said.
  const char* const usual = weights.has("group_size") ? "group" : "tensor";
  const std::string strategy = weights.optional_text("strategy").value_or(usual);
  if (type != "int" && type != "float") weights.fail("type", "`int` or `float`");
  if (type == "float" && weights.optional_size({"num_bits"}, 64).value_or(8) != 8) {
    weights.fail("num_bits", "8: floats of other widths are not supported");
  }
  const bool symmetric = weights.flag("symmetric", true);
  q.format.kind =
      type == "float" ? CodeKind::kFloat8 : kind_of_bits(weights, "num_bits", 8, {4, 8});
  q.format.zeros = !symmetric && type == "int";
  q.symmetric_key = "symmetric";
  q.format.scale = ScaleType::kBFloat16;
  if (type == "float" && !symmetric) weights.fail("symmetric", "true");
  if (strategy == "group") {
    q.format.group = group_of(weights, 128);
    q.ordered = reads_order(weights) && q.format.group != 0;
  } else if (strategy == "block") {
    if (!weights.has("block_structure")) weights.fail("block_structure", "[rows, columns]");
    read_block(weights, "block_structure", q);
  } else if (strategy != "channel" && strategy != "tensor") {
    weights.fail("strategy", "`group`, `channel`, `block` or `tensor`");
  }
  note_unknown(weights,
               {"num_bits", "type", "symmetric", "group_size", "strategy", "block_structure",
                "dynamic", "actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"},
               q);
}

Layout layout_of(const ConfigKeys& keys, const char* key, const std::string& format,
                 const ConfigKeys& weights, CodeKind kind) {
  const bool naive = format == "naive-quantized";
  if (format == "pack-quantized" && kind != CodeKind::kFloat8) return Layout::kPacked;
  if ((format == "int-quantized" || naive) && kind == CodeKind::kInt8) return Layout::kInt8;
  if ((format == "float-quantized" || naive) && kind == CodeKind::kFloat8) return Layout::kFloat8;
  const bool known = naive || format == "pack-quantized" || format == "int-quantized" ||
                     format == "float-quantized";
  if (known) weights.fail("num_bits", fmt::format("a width and a type that `{}` has", format));
  keys.fail(key,
            "`pack-quantized`, `int-quantized` or `float-quantized`: weights in another order or "
            "format are not supported; use a checkpoint in one of these, or in 16 bits");
}

Quantization compressed_tensors(const ConfigKeys& keys) {
  Quantization q;
  keys.refuse("transform_config", "transformed weights are");
  if (const auto sparsity = keys.object("sparsity_config")) {
    if (sparsity->optional_text("format").value_or("dense") != "dense") {
      sparsity->fail("format", "`dense`: sparse weights are not supported");
    }
  }
  const auto groups = keys.object("config_groups");
  if (!groups || groups->root().empty()) {
    keys.fail("config_groups", "a group of matrices with its settings");
  }
  if (groups->root().size() > 1) {
    throw CheckpointError(fmt::format(
        "{}: {} has {} groups: matrices in several formats are not supported; use a checkpoint "
        "with one",
        keys.file(), in_quotes(keys.name("config_groups")), groups->root().size()));
  }
  const std::string name = groups->root().begin().key();
  const auto settings = groups->object(name);
  if (!settings) groups->fail(name, "the settings of a group of matrices");
  const ConfigKeys& group = *settings;
  const auto weights = group.object("weights");
  if (!weights) group.fail("weights", "the settings of the weights");
  read_weights(*weights, q);
  const bool own_format = group.has("format");
  const std::string format =
      (own_format ? group : keys).optional_text("format").value_or("missing");
  q.layout = layout_of(own_format ? group : keys, "format", format, *weights, q.format.kind);
  q.method = fmt::format("compressed-tensors ({})", format);
  q.activations = group.has("input_activations") || group.has("output_activations");
  q.kv_cache = keys.has("kv_cache_scheme");
  note_unknown(group, {"targets", "weights", "input_activations", "output_activations", "format"},
               q);
  note_unknown(keys,
               {"quant_method", "format", "config_groups", "ignore", "kv_cache_scheme",
                "quantization_status", "global_compression_ratio", "sparsity_config",
                "transform_config", "version", "moe_sparsity_config", "run_compressed"},
               q);
  return q;
}

}  // namespace

std::string Quantization::text() const {
  if (layout == Layout::kNone) return "";
  return fmt::format("{} {} rows {} zero {} {}", method, name_of(format), group_rows, zero_offset,
                     symmetric ? "symmetric" : "asymmetric");
}

Quantization read_quantization(const ConfigKeys& keys) {
  if (!keys.has("quant_method")) {
    throw CheckpointError(
        fmt::format("{}: {} is missing: it is one of {}; fetch the file again, or add the method "
                    "that the checkpoint's page names",
                    keys.file(), in_quotes(keys.name("quant_method")), kMethods));
  }
  const std::string method = keys.text("quant_method");
  Quantization q;
  if (method == "gptq") {
    q = gptq(keys);
  } else if (method == "awq") {
    q = awq(keys);
  } else if (method == "fp8") {
    q = fp8(keys);
  } else if (method == "compressed-tensors") {
    q = compressed_tensors(keys);
  } else {
    keys.fail("quant_method",
              fmt::format("{}: weights quantized in another way are not supported; use the "
                          "checkpoint in 16 bits",
                          kMethods));
  }
  std::ranges::sort(q.unknown);
  return q;
}

std::vector<std::string> quantization_warnings(const Quantization& q, const std::string& file,
                                               bool config_alone) {
  std::vector<std::string> lines;
  if (config_alone && q.ordered) {
    lines.push_back(fmt::format(
        "{}: columns may be in another order (`desc_act`, `actorder`), which only the weights' "
        "files say: a run refuses those that are",
        file));
  }
  if (q.activations || q.kv_cache) {
    const char* const what = !q.kv_cache      ? "the inputs of products"
                             : !q.activations ? "keys and values"
                                              : "the inputs of products, keys and values";
    lines.push_back(fmt::format(
        "{}: `quantization_config` quantizes {} as well as weights: weights are used as they are "
        "stored, {} stay in 16 bits",
        file, what, what));
  }
  if (!q.unknown.empty()) {
    const std::size_t shown = std::min(q.unknown.size(), kMostUnknown);
    std::vector<std::string> names;
    for (std::size_t i = 0; i < shown; ++i) names.push_back(in_quotes(q.unknown[i]));
    lines.push_back(fmt::format(
        "{}: this version does not know {}{}: where that changes values, answers differ from what "
        "the checkpoint's authors meant",
        file, fmt::join(names, ", "), shown < q.unknown.size() ? ", .." : ""));
  }
  return lines;
}

}  // namespace zi
