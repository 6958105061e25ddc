#if defined(__x86_64__)
#include "backend/cpu/products/amx_packed_rows.h"

/// Products of tiles: sixteen weight rows of a block of columns, as they lie, times as many rows of
/// activations, packed in panels of pairs of columns:
///
///     panel:  (blocks of columns, 16 pairs, width, 2)
///
/// The width is 16, or where one panel holds all, the number of its rows. An element of y is summed
/// block after block: nothing else decides its bits.
namespace zi {
namespace {

constexpr std::int64_t kTileElements = kTile * kBlockColumns;
constexpr std::int64_t kTileBytes = kTileElements * 2;
/// What the second cache, of 2 MiB or more in processors with tiles, keeps of rows to come.
constexpr std::int64_t kAheadBytes = 1 << 20;

std::int64_t width_of(std::int64_t activations) {
  return activations < kTile ? activations : kTile;
}

std::int64_t panels_of(std::int64_t activations) { return (activations + kTile - 1) / kTile; }

std::size_t amx_packed_bytes(std::int64_t activations, std::int64_t padded_cols) {
  return static_cast<std::size_t>(panels_of(activations) * width_of(activations) * padded_cols) * 2;
}

/// A panel's rows, block by block: pairs of columns are turned as the 32-bit words that they are.
void amx_pack(const std::uint16_t* a, std::int64_t activations, std::int64_t cols,
              std::int64_t panel, std::byte* packed) {
  const std::int64_t width = width_of(activations);
  const std::int64_t left = activations - panel * kTile;
  const std::int64_t rows = left < kTile ? left : kTile;
  const std::int64_t blocks = (cols + kBlockColumns - 1) / kBlockColumns;
  const std::uint16_t* const from = a + panel * kTile * cols;
  auto* to = reinterpret_cast<std::uint32_t*>(packed) + panel * blocks * (kTileElements / 2);
  const auto lanes = static_cast<__mmask16>((1u << width) - 1);
  for (std::int64_t block = 0; block < blocks; ++block, to += kTile * width) {
    const std::int64_t here = cols - block * kBlockColumns;
    const auto columns = static_cast<__mmask32>(here < kBlockColumns ? (1u << here) - 1 : ~0u);
    __m512i words[kTile];
    for (std::int64_t r = 0; r < kTile; ++r) {
      words[r] = r < rows
                     ? _mm512_maskz_loadu_epi16(columns, from + r * cols + block * kBlockColumns)
                     : _mm512_setzero_si512();
    }
    transpose(words);
    for (std::int64_t pair = 0; pair < kTile; ++pair) {
      _mm512_mask_storeu_epi32(to + pair * width, lanes, words[pair]);
    }
  }
}

bool amx_streams(std::int64_t activations, std::int64_t) { return activations <= kTile; }

/// A tile of sums, then weights.
std::size_t amx_scratch_bytes(std::int64_t activations, std::int64_t padded_cols, std::int64_t) {
  const std::int64_t columns = 2 * (activations <= kTile ? kMostPieceColumns : padded_cols);
  static_assert(kSumsBytes + kTile * 2 * kMostPieceColumns * 2 >= kPackedRowsScratch);
  return static_cast<std::size_t>(kSumsBytes + kTile * columns * 2);
}

/// While a part's pieces are read one after the other, memory brings as many rows after it, or the
/// ones after those, in the order in which they lie: pieces alone would ask for lines of many
/// pages.
void ask_ahead(const WeightReader& weights, PackedPart& part) {
  const std::int64_t bytes = part.rows * weights.row_bytes;
  if (bytes > kAheadBytes) return;
  part.ahead = part.packed + (2 * bytes <= kAheadBytes ? 2 * bytes : bytes);
  part.ahead_step = weights.piece_bytes;
}

/// Thirty-two weight rows: where they lie, or copied.
struct Weights {
  const std::byte* upper;
  const std::byte* lower;
  std::int64_t stride;  // of rows, in bytes
};

/// Tiles along `columns` columns of one or two times sixteen weight rows, times a panel.
template <bool kLower>
void add_tiles(const Weights& w, const std::byte* panel, std::int64_t width, std::int64_t columns) {
  for (std::int64_t i = 0; i < columns; i += kBlockColumns) {
    tile_load<6>(panel, width * 4);
    tile_load<4>(w.upper + i * 2, w.stride);
    tile_multiply<0, 4, 6>();
    if constexpr (kLower) tile_load<5>(w.lower + i * 2, w.stride);
    if constexpr (kLower) tile_multiply<2, 5, 6>();
    panel += kTile * width * 4;
  }
}

/// Rows in place, or of any format.
template <bool kLower>
void multiply_few_rows(const ProductJob& job, std::int64_t first, std::int64_t count) {
  const WeightReader& weights = *job.weights;
  const std::int64_t width = job.activations;
  const std::byte* const rows = job.rows + first * weights.row_bytes;
  tile_zero<0>();
  if constexpr (kLower) tile_zero<2>();
  if (weights.in_place && count % kTile == 0) {
    add_tiles<kLower>({rows, rows + kTile * weights.row_bytes, weights.row_bytes}, job.packed,
                      width, weights.cols);
  } else {
    // Pieces of columns are unpacked, and multiplied from the first cache.
    const std::int64_t stride = weights.piece_columns * 2;
    std::byte* const unpacked = job.scratch + kSumsBytes;
    const Weights w{unpacked, unpacked + kTile * stride, stride};
    PackedPart part{rows, count, 0, weights.piece_columns};
    ask_ahead(weights, part);
    for (; part.first < weights.cols; part.first += part.columns) {
      const std::int64_t rest = weights.cols - part.first;
      part.columns = rest < weights.piece_columns ? rest : weights.piece_columns;
      weights.read(part, kLower ? 2 * kTile : kTile, reinterpret_cast<std::uint16_t*>(unpacked),
                   weights.piece_columns);
      add_tiles<kLower>(w, job.packed + part.first * width * 2, width, part.columns);
      part.ahead += count * part.ahead_step;
    }
  }
  float* const y = job.y + first;
  put_tile<0>(job.scratch, width, count < kTile ? count : kTile, width, y, job.ld);
  if constexpr (kLower) put_tile<2>(job.scratch, width, kTile, width, y + kTile, job.ld);
}

/// One panel: weights go through once, thirty-two rows at a time, or sixteen very long ones.
void multiply_few(const ProductJob& job) {
  const WeightReader& weights = *job.weights;
  std::int64_t first = 0;
  switch (weights.packing) {
    case WeightReader::Packing::kInt8:
      first = multiply_packed<OwnFormat<Int8Columns64>>(job);
      break;
    case WeightReader::Packing::kInt4:
      first = multiply_packed<OwnFormat<Int4Columns64>>(job);
      break;
    case WeightReader::Packing::kOtherInt4:
      first = multiply_packed<Int4Format>(job);
      break;
    case WeightReader::Packing::kOtherInt8:
      first = weights.packed_row->format.zeros
                  ? multiply_packed<ByteFormat<Int8CodesAvx512<true>>>(job)
                  : multiply_packed<ByteFormat<Int8CodesAvx512<false>>>(job);
      break;
    case WeightReader::Packing::kOtherFloat8:
      first = multiply_packed<ByteFormat<Float8CodesAvx512>>(job);
      break;
    case WeightReader::Packing::kNone:
      break;
  }
  if (2 * kTile * weights.row_bytes <= kAheadBytes || weights.in_place) {
    for (; job.count - first >= 2 * kTile; first += 2 * kTile) {
      multiply_few_rows<true>(job, first, 2 * kTile);
    }
  }
  for (; first < job.count; first += kTile) {
    const std::int64_t left = job.count - first;
    multiply_few_rows<false>(job, first, left < kTile ? left : kTile);
  }
}

template <bool kLower, bool kSecond>
void multiply_tiles(const Weights& w, const std::byte* panel, std::int64_t blocks) {
  tile_zero<0>();
  if constexpr (kSecond) tile_zero<1>();
  if constexpr (kLower) tile_zero<2>();
  if constexpr (kLower && kSecond) tile_zero<3>();
  const std::byte* const second = panel + blocks * kTileBytes;
  for (std::int64_t b = 0; b < blocks; ++b) {
    tile_load<6>(panel + b * kTileBytes, 64);
    tile_load<4>(w.upper + b * kBlockColumns * 2, w.stride);
    tile_multiply<0, 4, 6>();
    if constexpr (kSecond) tile_load<7>(second + b * kTileBytes, 64);
    if constexpr (kSecond) tile_multiply<1, 4, 7>();
    if constexpr (kLower) tile_load<5>(w.lower + b * kBlockColumns * 2, w.stride);
    if constexpr (kLower) tile_multiply<2, 5, 6>();
    if constexpr (kLower && kSecond) tile_multiply<3, 5, 7>();
  }
}

template <int kSums>
void put_tile_of(const ProductJob& job, std::int64_t row, std::int64_t activation) {
  const std::int64_t rows = job.activations - activation;
  const std::int64_t count = job.count - row;
  put_tile<kSums>(job.scratch, kTile, count < kTile ? count : kTile, rows < kTile ? rows : kTile,
                  job.y + activation * job.ld + row, job.ld);
}

void multiply_many(const ProductJob& job) {
  const WeightReader& weights = *job.weights;
  const std::int64_t blocks = weights.padded_cols / kBlockColumns;
  auto* const unpacked = reinterpret_cast<std::uint16_t*>(job.scratch + kSumsBytes);
  for (std::int64_t row = 0; row < job.count; row += 2 * kTile) {
    const std::int64_t left = job.count - row;
    const std::int64_t count = left < 2 * kTile ? left : 2 * kTile;
    const bool lower = count > kTile;
    const std::byte* const rows = job.rows + row * weights.row_bytes;
    Weights w{rows, rows + kTile * weights.row_bytes, weights.row_bytes};
    if (!weights.in_place || count % kTile != 0) {
      const std::int64_t height = lower ? 2 * kTile : kTile;
      PackedPart part{rows, count, 0, weights.cols};
      ask_ahead(weights, part);
      weights.read(part, height, unpacked, weights.padded_cols);
      w.upper = job.scratch + kSumsBytes;
      w.stride = weights.padded_cols * 2;
      w.lower = w.upper + kTile * w.stride;
    }
    for (std::int64_t a = 0; a < job.activations; a += 2 * kTile) {
      const std::byte* const panel = job.packed + a / kTile * blocks * kTileBytes;
      const bool second = job.activations - a > kTile;
      if (lower && second) {
        multiply_tiles<true, true>(w, panel, blocks);
      } else if (lower) {
        multiply_tiles<true, false>(w, panel, blocks);
      } else if (second) {
        multiply_tiles<false, true>(w, panel, blocks);
      } else {
        multiply_tiles<false, false>(w, panel, blocks);
      }
      put_tile_of<0>(job, row, a);
      if (second) put_tile_of<1>(job, row, a + kTile);
      if (lower) put_tile_of<2>(job, row + kTile, a);
      if (lower && second) put_tile_of<3>(job, row + kTile, a + kTile);
    }
  }
}

void amx_multiply(const ProductJob& job) {
  tiles_begin(width_of(job.activations));
  if (job.activations <= kTile) {
    multiply_few(job);
  } else {
    multiply_many(job);
  }
  tiles_end();
}

}  // namespace

const ProductKernels kAmxProducts = {kTile,    2 * kTile,         amx_streams, amx_packed_bytes,
                                     amx_pack, amx_scratch_bytes, amx_multiply};

}  // namespace zi
#endif
