#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/products/weight_reader.h"
#include "base/instruction_set.h"

namespace zi {

/// A run of weight rows times all rows of activations.
struct ProductJob {
  const WeightReader* weights;
  const std::byte* rows;     // the first weight row
  std::int64_t count;        // of them
  const std::byte* packed;   // activations, as `pack` wrote them
  std::int64_t activations;  // rows
  float* y;                  // (activations, ld): the columns of these weight rows
  std::int64_t ld;
  std::byte* scratch;  // of one thread, scratch_bytes, in whole cache lines
};

/// Products of 16-bit activations and weights of one type with one instruction set. Each element of
/// y is summed in float32 in one order, whatever the rows, the activations and the threads. The
/// files behind this are compiled for their instructions: they call no inline function of a header
/// that others use, for of those the linker keeps one copy.
struct ProductKernels {
  /// Rows of activations that are packed together.
  std::int64_t panel_rows;
  /// Weight rows of which a job should have a multiple.
  std::int64_t job_rows;
  /// Whether weights go by once, from memory, and are kept nowhere: with few rows of activations.
  bool (*streams)(std::int64_t activations, std::int64_t padded_cols);
  /// Bytes of packed activations.
  std::size_t (*packed_bytes)(std::int64_t activations, std::int64_t padded_cols);
  /// Packs a panel of a (activations, cols); panels may be packed at the same time.
  void (*pack)(const std::uint16_t* a, std::int64_t activations, std::int64_t cols,
               std::int64_t panel, std::byte* packed);
  /// For jobs of up to `count` weight rows.
  std::size_t (*scratch_bytes)(std::int64_t activations, std::int64_t padded_cols,
                               std::int64_t count);
  void (*multiply)(const ProductJob& job);
};

extern const ProductKernels kAvx2Products;
extern const ProductKernels kAvx512Products;
extern const ProductKernels kAvx512Bf16Products;
extern const ProductKernels kAmxProducts;
extern const ProductKernels kAvx2Float16Products;
extern const ProductKernels kAvx512Float16Products;

}  // namespace zi
