#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "zero_infer/dtype.h"
#include "zero_infer/partition_layout.h"

/// What the kernels for products of few rows share: weights, and their copies to shared memory.
namespace zi {

/// Alignment of rings in shared memory, which a warp writes and reads by whole lines. Behind static
/// memory of some bytes they would begin in the midst of a line: each copy and load of a warp then
/// touches one line more, and a product that keeps up with memory takes a third longer.
inline constexpr int kLineBytes = 128;

/// Rows of a matrix, those of all its blocks one after the other.
struct StreamedMatrix {
  const std::byte* w;
  std::size_t block_stride_bytes;
  std::uint32_t rows_per_block;
  int rows;        // of all blocks
  int first;       // column of the product
  int first_tile;  // where tiles do not mix matrices
};

/// Matrices side by side, cut into tiles of `tile_rows` weight rows. Either each tile is of one
/// matrix, or, of a gate and the matrix that it opens, half of each: eight rows of one and eight of
/// the other in turn, so that what belongs together meets.
struct StreamedProduct {
  StreamedMatrix matrices[Matrices::kMost];
  int cols;
  int row_bytes;  // of a weight row
  int tiles;
  const std::byte* x;  // (rows, cols)
  int rows;
};

/// The rows of a tile, from `row` on, of matrices[matrix]; of both matrices where they are mixed.
struct StreamedTile {
  int matrix;
  int row;
};

/// What the product's columns of a tile are: `limit` is behind the last.
struct TileColumns {
  int first;
  int limit;
};

inline StreamedProduct streamed(const Matrices& w, const void* x, std::int64_t rows, int tile_rows,
                                bool mixed) {
  StreamedProduct product{.matrices = {},
                          .cols = static_cast<int>(w.cols()),
                          .row_bytes = static_cast<int>(w[0].row_bytes()),
                          .tiles = 0,
                          .x = static_cast<const std::byte*>(x),
                          .rows = static_cast<int>(rows)};
  const auto tiles_of = [&](int of) { return (of + tile_rows - 1) / tile_rows; };
  for (std::size_t i = 0; i < Matrices::kMost; ++i) {
    StreamedMatrix& m = product.matrices[i];
    m.first_tile = std::numeric_limits<int>::max();
    if (i >= w.size()) continue;
    m.w = w[i].data;
    m.block_stride_bytes = w[i].block_stride_bytes;
    m.rows_per_block = static_cast<std::uint32_t>(w[i].rows_per_block);
    m.rows = static_cast<int>(w[i].padded_rows());
    m.first = static_cast<int>(w.first(i));
    m.first_tile = product.tiles;
    product.tiles += tiles_of(m.rows);
  }
  if (mixed) product.tiles = tiles_of(2 * product.matrices[0].rows);
  return product;
}

/// Columns in multiples of 8, and `a` and all rows of w aligned to 16 bytes.
inline bool can_stream_rows(const void* a, const Matrices& w) {
  const auto aligned = [](std::uintptr_t address) { return address % 16 == 0; };
  // Tiles and columns are counted in int, with room for one more round of all blocks.
  constexpr std::int64_t kMost = std::numeric_limits<int>::max() / 2;
  if (w.cols() < 8 || w.cols() % 8 != 0 || w.cols() > kMost / 2 || w.padded_rows() > kMost ||
      !aligned(reinterpret_cast<std::uintptr_t>(a)) || !aligned(w[0].row_bytes())) {
    return false;
  }
  for (std::size_t i = 0; i < w.size(); ++i) {
    if (w[i].padded_rows() < 1 || !aligned(reinterpret_cast<std::uintptr_t>(w[i].data)) ||
        (w[i].blocks > 1 && !aligned(w[i].block_stride_bytes))) {
      return false;
    }
  }
  return true;
}

/// The same, and equal 16-bit types.
inline bool can_stream(const void* a, DType a_dtype, const Matrices& w) {
  return w.format() == a_dtype && a_dtype != DType::kFloat32 && can_stream_rows(a, w);
}

template <int kTileRows, bool kMixed>
__device__ inline StreamedTile tile_of(const StreamedProduct& product, int tile) {
  if constexpr (kMixed) return {0, tile * (kTileRows / 2)};
  static_assert(Matrices::kMost == 3);
  const int matrix = (tile >= product.matrices[1].first_tile ? 1 : 0) +
                     (tile >= product.matrices[2].first_tile ? 1 : 0);
  return {matrix, (tile - product.matrices[matrix].first_tile) * kTileRows};
}

/// Of an unmixed tile.
__device__ inline TileColumns columns_of(const StreamedProduct& product, const StreamedTile& tile) {
  const StreamedMatrix& m = product.matrices[tile.matrix];
  return {m.first + tile.row, m.first + m.rows};
}

/// Where a tile's row begins; for rows after the last one, where the last row does.
template <bool kMixed>
__device__ inline const std::byte* row_at(const StreamedProduct& product, const StreamedTile& tile,
                                          int row) {
  const StreamedMatrix& m = product.matrices[kMixed ? row / 8 % 2 : tile.matrix];
  const int at = tile.row + (kMixed ? row / 16 * 8 + row % 8 : row);
  const auto last = static_cast<std::uint32_t>(min(at, m.rows - 1));
  // Most matrices are one block: their rows need no division.
  const std::uint32_t block = last < m.rows_per_block ? 0 : last / m.rows_per_block;
  return m.w + block * m.block_stride_bytes +
         static_cast<std::size_t>(last - block * m.rows_per_block) * product.row_bytes;
}

__device__ inline std::uint64_t evict_first_policy() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
  return policy;
}

/// 16 bytes, zeros without `present`.
__device__ inline void copy_weights_async(std::uint32_t shared, const void* global, bool present,
                                          std::uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;\n" ::"r"(shared),
               "l"(global), "r"(present ? 16 : 0), "l"(policy)
               : "memory");
}

/// The same, and the 256 bytes around them come into L2.
__device__ inline void copy_weights_and_fetch_async(std::uint32_t shared, const void* global,
                                                    bool present, std::uint64_t policy) {
  asm volatile(
      "cp.async.cg.shared.global.L2::cache_hint.L2::256B [%0], [%1], 16, %2, %3;\n" ::"r"(shared),
      "l"(global), "r"(present ? 16 : 0), "l"(policy)
      : "memory");
}

/// Brings the line of an address into L2.
__device__ inline void fetch_to_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(global));
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

template <int kPending>
__device__ inline void wait_for_all_copies_but() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

}  // namespace zi
