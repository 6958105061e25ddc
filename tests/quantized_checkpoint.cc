#include "quantized_checkpoint.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "synthetic_checkpoint.h"
#include "zero_infer/dtype.h"
#include "zero_infer/model_config.h"
#include "zero_infer/random.h"

namespace zi::test {
namespace {

using nlohmann::json;
using Layout = Quantization::Layout;
using Shape = std::vector<std::int64_t>;
using CodeAt = std::function<unsigned(std::int64_t, std::int64_t)>;

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// Codes (rows, cols) in words along columns; the code of column p of a word stands in place
/// order[p], or p.
TestTensor words_of(std::int64_t rows, std::int64_t cols, int bits, const CodeAt& code,
                    const std::vector<int>& order = {}) {
  const std::int64_t per = 32 / bits, words = (cols + per - 1) / per;
  std::vector<std::uint32_t> out(static_cast<std::size_t>(rows * words));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const auto place =
          order.empty() ? static_cast<int>(c % per) : order[static_cast<std::size_t>(c % per)];
      out[static_cast<std::size_t>(r * words + c / per)] |= code(r, c) << (bits * place);
    }
  }
  return {"I32", {rows, words}, bytes_of(out)};
}

/// The same in words along rows.
TestTensor words_along_rows(std::int64_t rows, std::int64_t cols, int bits, const CodeAt& code) {
  const std::int64_t per = 32 / bits, words = (rows + per - 1) / per;
  std::vector<std::uint32_t> out(static_cast<std::size_t>(words * cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      out[static_cast<std::size_t>(r / per * cols + c)] |= code(r, c) << (bits * (r % per));
    }
  }
  return {"I32", {words, cols}, bytes_of(out)};
}

TestTensor byte_codes(const std::string& dtype, std::int64_t rows, std::int64_t cols,
                      const CodeAt& code) {
  std::string out;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) out += static_cast<char>(code(r, c));
  }
  return {dtype, {rows, cols}, out};
}

/// A value that the type has.
float rounded_to(const std::string& dtype, float value) {
  if (dtype == "F16") return float16_to_float(float_to_float16(value));
  if (dtype == "BF16") return bfloat16_to_float(float_to_bfloat16(value));
  return value;
}

TestTensor scales_of(const std::string& dtype, Shape shape, const std::vector<float>& values) {
  if (dtype == "F32") return {dtype, std::move(shape), bytes_of(values)};
  std::vector<std::uint16_t> narrow;
  for (const float v : values) {
    narrow.push_back(dtype == "F16" ? float_to_float16(v) : float_to_bfloat16(v));
  }
  return {dtype, std::move(shape), bytes_of(narrow)};
}

double value_of_float8(unsigned code) {
  const int exponent = static_cast<int>(code >> 3 & 15u), mantissa = static_cast<int>(code & 7u);
  const double size =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code < 128 ? size : -size;
}

json compressed(const std::string& format, json weights) {
  return {
      {"quant_method", "compressed-tensors"},
      {"format", format},
      {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", std::move(weights)}}}}}};
}

json gptq(int bits, int group, bool sym, const char* format) {
  return {{"quant_method", "gptq"}, {"bits", bits},
          {"group_size", group},    {"sym", sym},
          {"desc_act", false},      {"checkpoint_format", format}};
}

json awq_of(int group) {
  return {{"quant_method", "awq"},
          {"bits", 4},
          {"group_size", group},
          {"zero_point", true},
          {"version", "GEMM"}};
}

json integers(int bits, bool symmetric, const char* strategy, int group) {
  json weights = {
      {"num_bits", bits}, {"type", "int"}, {"symmetric", symmetric}, {"strategy", strategy}};
  if (group > 0) weights["group_size"] = group;
  return weights;
}

}  // namespace

void write_tensors(const std::filesystem::path& path, const TestTensors& tensors) {
  json header = json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  write_text(path, safetensors_bytes(header.dump(), data));
}

json quantized_config(const json& quantization) {
  return {{"model_type", "llama"},    {"hidden_size", 64},
          {"num_hidden_layers", 1},   {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"intermediate_size", 96},
          {"vocab_size", 100},        {"quantization_config", quantization}};
}

Quantization quantization_of(const json& quantization) {
  return ModelConfig::parse(quantized_config(quantization).dump(), {}, "dir").quantization;
}

std::vector<QuantizedKind> quantized_kinds() {
  const json float8 = {{"num_bits", 8}, {"type", "float"}, {"symmetric", true}};
  const auto floats = [&](json more) {
    json weights = float8;
    weights.update(more);
    return compressed("float-quantized", weights);
  };
  return {
      {"gptq g32", gptq(4, 32, false, "gptq")},
      {"gptq g64 sym", gptq(4, 64, true, "gptq")},
      {"gptq g128", gptq(4, 128, false, "gptq")},
      {"gptq rows v2", gptq(4, -1, false, "gptq_v2"), "BF16"},
      {"gptq 8 bits g16", gptq(8, 16, false, "gptq"), "F32"},
      {"gptq 8 bits sym v2", gptq(8, -1, true, "gptq_v2")},
      {"awq g32", awq_of(32)},
      {"awq g128", awq_of(128)},
      {"awq rows", awq_of(-1), "BF16"},
      {"packed g32", compressed("pack-quantized", integers(4, true, "group", 32)), "BF16"},
      {"packed g128 asym", compressed("pack-quantized", integers(4, false, "group", 128))},
      {"packed rows", compressed("pack-quantized", integers(4, true, "channel", 0)), "F32"},
      {"packed rows asym", compressed("pack-quantized", integers(4, false, "channel", 0))},
      {"packed 8 bits g64", compressed("pack-quantized", integers(8, true, "group", 64)), "BF16"},
      {"packed 8 bits asym", compressed("pack-quantized", integers(8, false, "channel", 0))},
      {"int8 rows", compressed("int-quantized", integers(8, true, "channel", 0)), "BF16"},
      {"int8 rows asym", compressed("int-quantized", integers(8, false, "channel", 0))},
      {"int8 one scale", compressed("naive-quantized", integers(8, true, "tensor", 0)), "F32",
       true},
      {"int8 one scale asym", compressed("int-quantized", integers(8, false, "tensor", 0)), "F32",
       true},
      {"int8 g32", compressed("int-quantized", integers(8, false, "group", 32)), "BF16"},
      {"float8 rows", floats({{"strategy", "channel"}}), "BF16"},
      {"float8 one scale", floats({{"strategy", "tensor"}}), "BF16", true},
      {"float8 blocks", floats({{"strategy", "block"}, {"block_structure", {16, 32}}}), "F32"},
      {"float8 g128", floats({{"strategy", "group"}, {"group_size", 128}}), "F16"},
      {"fp8 blocks",
       {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}},
       "F32",
       false,
       "weight_scale_inv"},
      {"fp8 one scale", {{"quant_method", "fp8"}, {"activation_scheme", "static"}}, "F32", true}};
}

QuantizedMultiples multiples_of(const QuantizedKind& kind) {
  const Quantization q = quantization_of(kind.config);
  const std::int64_t per = q.format.kind == WeightFormat::Kind::kInt4 ? 8 : 4;
  if (q.layout == Layout::kGptq) return {per, per};
  if (q.layout == Layout::kAwq) return {per, 1};
  return {};
}

QuantizedExample quantized_example(const QuantizedKind& kind, const std::string& stem,
                                   std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  const Quantization q = quantization_of(kind.config);
  const bool floats = q.format.kind == WeightFormat::Kind::kFloat8;
  const int bits = q.format.kind == WeightFormat::Kind::kInt4 ? 4 : 8;
  const unsigned most = (1u << bits) - 1;
  const std::int64_t groups = q.format.groups(cols);
  const std::int64_t scale_rows = kind.one_scale ? 1 : (rows + q.group_rows - 1) / q.group_rows;
  const auto random = [seed](std::uint64_t what, std::int64_t a, std::int64_t b) {
    return mix64(seed * 31 + what + static_cast<std::uint64_t>(a) * 1000003 +
                 static_cast<std::uint64_t>(b) * 17);
  };
  const CodeAt code = [&](std::int64_t r, std::int64_t c) {
    const auto any = static_cast<unsigned>(random(1, r, c) >> 20 & most);
    return floats && any % 128 == 127 ? any - 1 : any;
  };
  const bool one_zero = kind.one_scale;
  const bool symmetric = !q.format.zeros;
  const CodeAt zero = [&](std::int64_t r, std::int64_t g) {
    if (symmetric) return (most + 1) / 2;
    const unsigned any = static_cast<unsigned>(random(2, one_zero ? 0 : r, g) >> 20 & most);
    // Less than 1 would be stored as -1, which is refused.
    return q.layout == Layout::kGptq && any == 0 ? 1u : any;
  };
  std::vector<float> scales;
  for (std::int64_t r = 0; r < scale_rows; ++r) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const auto part = static_cast<float>(random(3, r, g) >> 40) / 16777216.0f;
      scales.push_back(rounded_to(kind.scales, 0.001f + 0.02f * part));
    }
  }
  const auto scale = [&](std::int64_t r, std::int64_t g) {
    const std::int64_t row = kind.one_scale ? 0 : r / q.group_rows;
    return scales[static_cast<std::size_t>(row * groups + g)];
  };

  QuantizedExample out;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const std::int64_t g = q.format.group == 0 ? 0 : c / q.format.group;
      const double number =
          floats ? value_of_float8(code(r, c)) : static_cast<double>(code(r, c)) - zero(r, g);
      out.values.push_back(static_cast<float>(number) * scale(r, g));
    }
  }
  const auto add = [&](const std::string& end, TestTensor tensor) {
    out.tensors[stem + "." + end] = std::move(tensor);
  };
  if (q.layout == Layout::kGptq || q.layout == Layout::kAwq) {
    const bool awq = q.layout == Layout::kAwq;
    // Output 2 i of AWQ is in place i, output 2 i + 1 in place 4 + i.
    const std::vector<int> order =
        awq ? std::vector<int>{0, 4, 1, 5, 2, 6, 3, 7} : std::vector<int>{};
    add("qweight", awq ? words_of(
                             cols, rows, bits,
                             [&](std::int64_t c, std::int64_t r) { return code(r, c); }, order)
                       : words_along_rows(cols, rows, bits, [&](std::int64_t c, std::int64_t r) {
                           return code(r, c);
                         }));
    add("qzeros", words_of(
                      groups, rows, bits,
                      [&](std::int64_t g, std::int64_t r) {
                        return zero(r, g) - static_cast<unsigned>(q.zero_offset);
                      },
                      order));
    std::vector<float> turned;
    for (std::int64_t g = 0; g < groups; ++g) {
      for (std::int64_t r = 0; r < rows; ++r) turned.push_back(scale(r, g));
    }
    add("scales", scales_of(kind.scales, {groups, rows}, turned));
    if (!awq) {
      std::vector<std::int32_t> order_of_columns;
      for (std::int64_t c = 0; c < cols; ++c) {
        order_of_columns.push_back(
            static_cast<std::int32_t>(q.format.group == 0 ? 0 : c / q.format.group));
      }
      add("g_idx", {"I32", {cols}, bytes_of(order_of_columns)});
    }
    return out;
  }
  const Shape of_scales = kind.one_scale ? Shape{1} : Shape{scale_rows, groups};
  add(kind.scale_name, scales_of(kind.scales, of_scales, scales));
  if (q.layout == Layout::kPacked) {
    add("weight_packed", words_of(rows, cols, bits, code));
    add("weight_shape", {"I64", {2}, bytes_of(Shape{rows, cols})});
    if (!symmetric) add("weight_zero_point", words_along_rows(rows, groups, bits, zero));
  } else if (q.layout == Layout::kInt8) {
    const auto less_middle = [](const CodeAt& of) -> CodeAt {
      return [&of](std::int64_t r, std::int64_t c) { return of(r, c) - 128u; };
    };
    add("weight", byte_codes("I8", rows, cols, less_middle(code)));
    if (!symmetric) {
      add("weight_zero_point", byte_codes("I8", scale_rows, groups, less_middle(zero)));
    }
  } else {
    add("weight", byte_codes("F8_E4M3", rows, cols, code));
    add("input_scale", scales_of("F32", {}, {1.0f}));
  }
  return out;
}

}  // namespace zi::test
