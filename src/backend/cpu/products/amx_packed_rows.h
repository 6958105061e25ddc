#pragma once

#include "backend/cpu/products/amx_row_formats.h"
#include "backend/cpu/products/amx_tiles.h"
#include "backend/cpu/products/product_kernels.h"

/// Products of packed weight rows with a panel of up to sixteen rows of activations, for files that
/// are compiled for AMX.
namespace zi {
namespace {

/// Shorter rows are taken thirty-two at a time, two tiles, others sixteen: what memory was asked
/// for far ahead may have left the second cache by the time of its use.
inline constexpr std::int64_t kLongRowBytes = 2048;
/// Bytes of scratch: sums, and two pieces of two tiles of weights.
inline constexpr std::int64_t kPackedRowsScratch = kSumsBytes + 2 * 2 * kTile * kPackedColumns * 2;

/// kTiles times sixteen weight rows from `first` on. Pieces of their columns are unpacked to the
/// first cache. The tiles of a piece's two blocks are multiplied after the two halves of the
/// unpacking of the next piece, and so run beside it. Meanwhile memory is asked for as many rows
/// after these, in the order in which they lie: pieces alone would ask for lines of many pages.
template <int kTiles, typename Format>
void multiply_packed_rows(const ProductJob& job, std::int64_t first) {
  constexpr std::int64_t kRows = kTiles * kTile;
  constexpr std::int64_t kStride = kPackedColumns * 2;
  static_assert(kPackedColumns == 2 * kBlockColumns);
  const std::int64_t width = job.activations;
  const std::int64_t row_bytes = job.weights->row_bytes;
  const std::int64_t piece_bytes = Format::bytes(*job.weights);
  const std::byte* codes = job.rows + first * row_bytes;
  typename Format::template Rows<kRows> rows(*job.weights, codes);
  const std::byte* ahead = codes + kRows * row_bytes;
  const std::byte* panel = job.packed;
  std::byte* unpacked = job.scratch + kSumsBytes;
  std::byte* before = unpacked + kRows * kStride;
  const auto unpack = [&](std::int64_t from) {
    const std::byte* code = codes + from * row_bytes;
    auto* out = reinterpret_cast<std::uint16_t*>(unpacked + from * kStride);
    for (std::int64_t r = 0; r < kRows / 2; ++r) {
      __builtin_prefetch(ahead, 0, 2);
      rows.write(code, from + r, out);
      ahead += piece_bytes;
      code += row_bytes;
      out += kPackedColumns;
    }
  };
  const auto multiply = [&](std::int64_t block) {
    const std::byte* const weights = before + block * kBlockColumns * 2;
    tile_load<6>(panel, width * 4);
    tile_load<4>(weights, kStride);
    tile_multiply<0, 4, 6>();
    if constexpr (kTiles == 2) tile_load<5>(weights + kTile * kStride, kStride);
    if constexpr (kTiles == 2) tile_multiply<2, 5, 6>();
    panel += kTile * width * 4;
  };
  tile_zero<0>();
  if constexpr (kTiles == 2) tile_zero<2>();
  for (std::int64_t c = 0; c < job.weights->cols; c += kPackedColumns) {
    unpack(0);
    if (c > 0) multiply(0);
    unpack(kRows / 2);
    if (c > 0) multiply(1);
    std::byte* const next = before;
    before = unpacked;
    unpacked = next;
    codes += Format::kCodeBytes;
    rows.next();
  }
  multiply(0);
  multiply(1);
  float* const y = job.y + first;
  put_tile<0>(job.scratch, width, kTile, width, y, job.ld);
  if constexpr (kTiles == 2) put_tile<2>(job.scratch, width, kTile, width, y + kTile, job.ld);
}

/// The rows of a job, in whole tiles: fewer than sixteen are left. None where columns are not whole
/// pieces. Returns how many.
template <typename Format>
std::int64_t multiply_packed(const ProductJob& job) {
  std::int64_t first = 0;
  if (job.weights->cols % kPackedColumns != 0 || !Format::takes(*job.weights)) return first;
  if (job.weights->row_bytes < kLongRowBytes) {
    for (; job.count - first >= 2 * kTile; first += 2 * kTile) {
      multiply_packed_rows<2, Format>(job, first);
    }
  }
  for (; job.count - first >= kTile; first += kTile) {
    multiply_packed_rows<1, Format>(job, first);
  }
  return first;
}

}  // namespace
}  // namespace zi
