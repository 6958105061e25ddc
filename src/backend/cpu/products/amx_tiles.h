#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

/// Tiles 0 to 7, for files that are compiled for AMX. In assembly, since what compilers offer
/// does not tell them which memory is read.
namespace zi {
namespace {

inline constexpr std::int64_t kTile = 16;  // rows of one, of weights as of activations
/// What put_tile needs: the sums of a tile.
inline constexpr std::int64_t kSumsBytes = kTile * kTile * 4;

/// Tiles of sixteen rows: 0 to 3 for sums (16, width) and 6, 7 for activations (16 pairs, width),
/// 4 and 5 for weights (16, 32). Of this thread, until tiles_end: others' code may set its own.
inline void tiles_begin(std::int64_t width) {
  struct alignas(64) {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  } shapes;
  for (int tile = 0; tile < 8; ++tile) {
    shapes.rows[tile] = 16;
    shapes.row_bytes[tile] =
        tile == 4 || tile == 5 ? std::uint16_t{64} : static_cast<std::uint16_t>(4 * width);
  }
  asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
}
inline void tiles_end() { asm volatile("tilerelease"); }

template <int kRegister>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kRegister));
}
template <int kRegister>
inline void tile_load(const void* from, std::int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(kRegister)
               : "memory");
}
template <int kRegister>
inline void tile_store(void* to, std::int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(kRegister)
               : "memory");
}
/// sums += weights . activations, pair by pair.
template <int kSums, int kWeights, int kActivations>
inline void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kWeights),
               "i"(kActivations));
}

/// Sixteen rows of 32-bit words to columns.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // r[4 g + k] has column 4 q + k of rows 4 g .. 4 g + 3 in its quarter q.
  for (int k = 0; k < 4; ++k) {
    const __m512i low = _mm512_shuffle_i32x4(r[k], r[4 + k], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(r[8 + k], r[12 + k], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(r[k], r[4 + k], 0xdd);
    const __m512i high_odd = _mm512_shuffle_i32x4(r[8 + k], r[12 + k], 0xdd);
    t[k] = _mm512_shuffle_i32x4(low, high, 0x88);
    t[8 + k] = _mm512_shuffle_i32x4(low, high, 0xdd);
    t[4 + k] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
    t[12 + k] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

/// A tile's sums (sixteen weight rows, width), by way of `scratch`, to columns of y (rows, ld):
/// `count` of the weight rows and `rows` of the width.
template <int kSums>
void put_tile(std::byte* scratch, std::int64_t width, std::int64_t count, std::int64_t rows,
              float* y, std::int64_t ld) {
  tile_store<kSums>(scratch, width * 4);
  const auto* sums = reinterpret_cast<const float*>(scratch);
  const auto lanes = static_cast<__mmask16>((1u << width) - 1);
  const auto columns = static_cast<__mmask16>((1u << count) - 1);
  if (width == 1) {
    _mm512_mask_storeu_ps(y, columns, _mm512_loadu_ps(sums));
    return;
  }
  __m512i words[kTile];
  for (std::int64_t i = 0; i < kTile; ++i) {
    words[i] = _mm512_maskz_loadu_epi32(lanes, sums + i * width);
  }
  transpose(words);
  for (std::int64_t r = 0; r < rows; ++r) {
    _mm512_mask_storeu_epi32(y + r * ld, columns, words[r]);
  }
}

}  // namespace
}  // namespace zi
