#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "zero_infer/quantization.h"

/// Matrices as other programs quantize them, code by code from the formats' descriptions.
namespace zi::test {

struct TestTensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::string bytes;
};
using TestTensors = std::map<std::string, TestTensor>;

/// Writes one safetensors file.
void write_tensors(const std::filesystem::path& path, const TestTensors& tensors);

/// The config.json of a small Llama with this `quantization_config`.
nlohmann::json quantized_config(const nlohmann::json& quantization);

/// What that config says.
Quantization quantization_of(const nlohmann::json& quantization);

/// How one matrix is quantized, beside its config.
struct QuantizedKind {
  std::string name;                         // for messages
  nlohmann::json config;                    // `quantization_config`
  std::string scales = "F16";               // their type
  bool one_scale = false;                   // of the whole matrix
  std::string scale_name = "weight_scale";  // of compressed-tensors and fp8
};

/// Every layout, width and way of sharing scales that can be read.
std::vector<QuantizedKind> quantized_kinds();

/// Of what a matrix must have a multiple.
struct QuantizedMultiples {
  std::int64_t rows = 1;
  std::int64_t cols = 1;
};
QuantizedMultiples multiples_of(const QuantizedKind& kind);

struct QuantizedExample {
  TestTensors tensors;        // `stem`.qweight and so on
  std::vector<float> values;  // (rows, cols): what they mean
};

/// Any codes, zero points and scales, seeded. `rows` and `cols` are multiples of those of the kind.
QuantizedExample quantized_example(const QuantizedKind& kind, const std::string& stem,
                                   std::int64_t rows, std::int64_t cols, std::uint64_t seed);

}  // namespace zi::test
