#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/content_samples.h"
#include "checkpoint/quantized_parts.h"
#include "zero_infer/model_spec.h"
#include "zero_infer/quantization.h"
#include "zero_infer/weight_format.h"

namespace zi {

/// The tensors of which another program has made a matrix.
struct QuantizedParts {
  std::optional<TensorInFile> codes;
  std::optional<TensorInFile> scales;
  std::optional<TensorInFile> zeros;
  std::optional<TensorInFile> order;  // the group of each column
  std::optional<TensorInFile> shape;  // (rows, columns), as numbers
};

/// A matrix that another program has quantized, read as packed rows of the same codes, scales and
/// zero points.
class QuantizedMatrix {
 public:
  /// `name` is the matrix's, for messages. Throws CheckpointError for a part that is missing or has
  /// a type that is none of it.
  QuantizedMatrix(std::string name, const Quantization& quantization, QuantizedParts parts);

  const WeightFormat& format() const { return format_; }
  /// The file of the codes.
  const SafetensorsFile& file() const { return *parts_.codes->file; }
  /// All tensors of which it is made.
  std::vector<TensorInFile> tensors() const;

  /// Writes packed rows [first, first + count) of the matrix, which has the shape of `tensor`. Any
  /// thread. Throws CheckpointError for parts of other shapes, columns that were reordered, codes,
  /// scales and zero points that are none, and rows whose scales look like a hole; IoError.
  void read(const TensorSpec& tensor, std::int64_t first, std::int64_t count, std::byte* out) const;

 private:
  [[noreturn]] void fail(const TensorInFile& part, const std::string& what) const;
  void check_shapes(std::int64_t rows, std::int64_t cols) const;
  void check_contents(std::int64_t rows, std::int64_t cols) const;
  void check_no_zeros() const;
  void put_zero(const RowRun& rows, std::int64_t row, std::int64_t group, int stored) const;
  void check_numbers(const RowRun& rows) const;
  void check_holes(const RowRun& rows) const;

  std::string name_;
  Quantization quantization_;
  QuantizedParts parts_;
  WeightFormat format_;
  mutable std::atomic<bool> contents_checked_ = false;
};

}  // namespace zi
