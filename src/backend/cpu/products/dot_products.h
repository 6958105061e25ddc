#pragma once

#include "backend/cpu/products/product_kernels.h"

/// Products as dot products along rows, for files that are compiled for one instruction set; `Simd`
/// is a type of the file's own. Simd::kWeightRows weight rows meet up to Simd::kMostRows rows of
/// activations in registers. The sum of an element has sixteen lanes; lane i takes columns 32 b + 2
/// i and 32 b + 2 i + 1 of each block b in turn.
namespace zi::dots {

/// How far ahead of its use memory is asked for a line, where weights are used once.
inline constexpr std::int64_t kAheadElements = 512;

template <typename Simd, int kRows>
void dots(const std::uint16_t* const (&w)[Simd::kWeightRows], const typename Simd::Packed* a,
          std::int64_t padded_cols, bool ask, std::int64_t outputs, float* y, std::int64_t ld) {
  typename Simd::Sum sums[kRows][Simd::kWeightRows] = {};
  const std::int64_t row_elements = padded_cols;
  for (std::int64_t c = 0; c < padded_cols; c += kBlockColumns) {
    if (ask) {
      for (std::int64_t i = 0; i < Simd::kWeightRows; ++i) {
        __builtin_prefetch(w[i] + c + kAheadElements, 0, 3);
      }
    }
    Simd::template step<kRows>(sums, w, a, c, row_elements);
  }
  for (int r = 0; r < kRows; ++r) {
    float out[Simd::kWeightRows];
    Simd::total(sums[r], out);
    if (outputs == Simd::kWeightRows) {
      for (std::int64_t i = 0; i < Simd::kWeightRows; ++i) y[r * ld + i] = out[i];
    } else {
      for (std::int64_t i = 0; i < outputs; ++i) y[r * ld + i] = out[i];
    }
  }
}

template <typename Simd>
std::size_t packed_bytes(std::int64_t activations, std::int64_t padded_cols) {
  return static_cast<std::size_t>(activations * padded_cols) * sizeof(typename Simd::Packed);
}

template <typename Simd>
std::size_t scratch_bytes(std::int64_t activations, std::int64_t padded_cols, std::int64_t count) {
  const std::int64_t rows = activations <= Simd::kMostRows ? Simd::kWeightRows : count;
  return static_cast<std::size_t>(rows * padded_cols) * sizeof(std::uint16_t);
}

/// One row at a time.
template <typename Simd>
void pack(const std::uint16_t* a, std::int64_t, std::int64_t cols, std::int64_t panel,
          std::byte* packed) {
  const std::int64_t padded_cols = (cols + kBlockColumns - 1) / kBlockColumns * kBlockColumns;
  auto* to = reinterpret_cast<typename Simd::Packed*>(packed) + panel * padded_cols;
  const std::uint16_t* from = a + panel * cols;
  for (std::int64_t c = 0; c < padded_cols; c += kBlockColumns) {
    if (c + kBlockColumns <= cols) {
      Simd::pack_block(from + c, to + c);
    } else {
      std::uint16_t last[kBlockColumns] = {};
      for (std::int64_t i = c; i < cols; ++i) last[i - c] = from[i];
      Simd::pack_block(last, to + c);
    }
  }
}

template <typename Simd>
void multiply_rows(const ProductJob& job, const std::uint16_t* weights, std::int64_t stride,
                   std::int64_t count, bool ask, float* y) {
  const std::int64_t padded_cols = job.weights->padded_cols;
  const std::int64_t turns = (job.activations + Simd::kMostRows - 1) / Simd::kMostRows;
  const std::int64_t rows_of_turn = (job.activations + turns - 1) / turns;
  for (std::int64_t first = 0; first < job.activations; first += rows_of_turn) {
    const bool ask_now = ask && first == 0;
    const auto* a =
        reinterpret_cast<const typename Simd::Packed*>(job.packed) + first * padded_cols;
    const std::int64_t left = job.activations - first;
    for (std::int64_t row = 0; row < count; row += Simd::kWeightRows) {
      const std::int64_t here = count - row < Simd::kWeightRows ? count - row : Simd::kWeightRows;
      const std::uint16_t* w[Simd::kWeightRows];
      for (std::int64_t i = 0; i < Simd::kWeightRows; ++i) {
        w[i] = weights + (row + (i < here ? i : here - 1)) * stride;  // one again, if there are few
      }
      float* const to = y + first * job.ld + row;
      switch (left < rows_of_turn ? left : rows_of_turn) {
        case 1:
          dots<Simd, 1>(w, a, padded_cols, ask_now, here, to, job.ld);
          break;
        case 2:
          dots<Simd, 2>(w, a, padded_cols, ask_now, here, to, job.ld);
          break;
        case 3:
          if constexpr (Simd::kMostRows >= 3)
            dots<Simd, 3>(w, a, padded_cols, ask_now, here, to, job.ld);
          break;
        case 4:
          if constexpr (Simd::kMostRows >= 4)
            dots<Simd, 4>(w, a, padded_cols, ask_now, here, to, job.ld);
          break;
        case 5:
          if constexpr (Simd::kMostRows >= 5)
            dots<Simd, 5>(w, a, padded_cols, ask_now, here, to, job.ld);
          break;
        default:
          if constexpr (Simd::kMostRows >= 6)
            dots<Simd, 6>(w, a, padded_cols, ask_now, here, to, job.ld);
      }
    }
  }
}

template <typename Simd>
void multiply(const ProductJob& job) {
  const WeightReader& weights = *job.weights;
  const bool few = job.activations <= Simd::kMostRows;
  if (weights.in_place) {
    multiply_rows<Simd>(job, reinterpret_cast<const std::uint16_t*>(job.rows), weights.cols,
                        job.count, true, job.y);
    return;
  }
  // Of packed rows that are used once: some are unpacked, and multiplied from the first cache.
  constexpr std::int64_t kAheadBytes = 4096;
  const std::int64_t step = few ? Simd::kWeightRows : job.count;
  const std::int64_t ahead =
      few ? (kAheadBytes / weights.row_bytes + Simd::kWeightRows) * weights.row_bytes : 0;
  auto* const unpacked = reinterpret_cast<std::uint16_t*>(job.scratch);
  for (std::int64_t row = 0; row < job.count; row += step) {
    const std::int64_t here = job.count - row < step ? job.count - row : step;
    weights.read({job.rows + row * weights.row_bytes, here, 0, weights.cols, ahead, ahead}, here,
                 unpacked, weights.padded_cols);
    multiply_rows<Simd>(job, unpacked, weights.padded_cols, here, false, job.y + row);
  }
}

template <typename Simd>
constexpr ProductKernels kernels() {
  return {1,          Simd::kWeightRows,   Simd::kMostRows, packed_bytes<Simd>,
          pack<Simd>, scratch_bytes<Simd>, multiply<Simd>};
}

}  // namespace zi::dots
