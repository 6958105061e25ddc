#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "offload/shard_reader.h"
#include "quantized_checkpoint.h"
#include "synthetic_checkpoint.h"
#include "zero_infer/checkpoint.h"
#include "zero_infer/error.h"

/// What tests of quantized matrices share: one matrix in a checkpoint of its own.
namespace zi::test {

constexpr const char* kStem = "model.layers.0.mlp.down_proj";
constexpr const char* kName = "layers.0.mlp.down_proj.weight";
/// What the names of its parts begin with.
inline const std::string kPart = std::string(kStem) + ".";

inline QuantizedKind kind_named(const std::string& name) {
  const auto kinds = quantized_kinds();
  const auto found = std::ranges::find(kinds, name, &QuantizedKind::name);
  EXPECT_NE(found, kinds.end()) << name;
  return *found;
}

/// Changes one element of a tensor.
template <typename T>
void set(TestTensors& tensors, const std::string& name, std::size_t index, T value) {
  std::memcpy(tensors.at(name).bytes.data() + index * sizeof(T), &value, sizeof value);
}

struct QuantizedRowsFixture : ::testing::Test {
  /// A checkpoint of these tensors and one of 16 bits.
  std::unique_ptr<WeightSource> open(const QuantizedKind& kind, TestTensors tensors) {
    tensors["model.norm.weight"] = {"BF16", {2}, std::string(4, '\0')};
    write_tensors(directory.path() / "model.safetensors", tensors);
    return open_checkpoint(directory.path(), "model.", quantization_of(kind.config));
  }
  static std::vector<std::byte> rows_of(const WeightSource& source, const TensorSpec& matrix) {
    const WeightFormat format = source.packed_format(matrix.name).value();
    std::vector<std::byte> rows(
        static_cast<std::size_t>(matrix.shape[0]) * format.row_bytes(matrix.shape[1]),
        std::byte{0xee});
    source.read_packed(matrix, 0, matrix.shape[0], rows.data());
    return rows;
  }
  /// What reading a matrix of such tensors says.
  std::string refusal(const QuantizedKind& kind, const TestTensors& tensors,
                      const TensorSpec& matrix) {
    try {
      const auto source = open(kind, tensors);
      const PartitionLayout layout({.name = "block 0", .matrices = {matrix}, .vectors = {}},
                                   source->packed_format(matrix.name).value(), 1);
      std::vector<std::byte> shard(layout.shard_bytes());
      ShardReader(*source, layout, 0).read(0, shard);
    } catch (const CheckpointError& error) {
      EXPECT_THAT(error.what(), ::testing::Not(::testing::HasSubstr("\n")));
      return error.what();
    }
    return "nothing was refused";
  }
  TemporaryDirectory directory;
};

}  // namespace zi::test
