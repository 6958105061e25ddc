#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "checkpoint/safetensors.h"
#include "zero_infer/weight_format.h"

namespace zi {

/// A matrix with packed rows in a safetensors file, as `zero-infer pack` writes it (README.md): its
/// name is that of the matrix, a dot and the name of the format (`h.0.mlp.dense_h_to_4h.weight.`
/// `int4g16f8`), its type U8, its shape (rows, bytes of a row).
struct PackedTensor {
  std::string matrix;
  WeightFormat format;
};

/// In `__metadata__` of a file with packed tensors: the version of their rows, and the type that
/// the blocks' elements had.
inline constexpr const char* kRowsVersionKey = "zero_infer.rows";
inline constexpr const char* kElementsKey = "zero_infer.elements";
/// Raised when rows of the same format have other bytes: those with scales of a byte have the same
/// in both, others are padded to 32 bytes since the second.
inline constexpr const char* kFirstRowsVersion = "1";
inline constexpr const char* kRowsVersion = "2";

std::string packed_name(std::string_view matrix, const WeightFormat& format);

/// What the tensor's name and type say; none for a tensor of elements. Throws CheckpointError for a
/// tensor that looks packed in a format that is not known.
std::optional<PackedTensor> packed_tensor(const std::string& name, const StoredTensor& tensor,
                                          const std::string& file);

/// The version of the rows of a format.
const char* rows_version(const WeightFormat& format);

/// The type that the elements had, for a tensor of this format in the file. Throws CheckpointError
/// for a file of another version, or without what it says of its rows.
DType elements_of_packed(const SafetensorsHeader& header, const WeightFormat& format,
                         const std::string& file);

}  // namespace zi
