#if defined(__x86_64__)
#include <immintrin.h>

#include "backend/cpu/products/dot_products.h"
#include "packing/unpack_avx2.h"

namespace zi {
namespace {

/// A block's floats, as lanes take them: of bfloat16s even columns, and odd ones.
struct Floats256 {
  __m256 first[2];
  __m256 second[2];
};

/// Rounds kInt8Weights, see Int8Factors.
struct Int8Floats256 {
  static constexpr std::int64_t kCodeBytes = 32;
  static constexpr std::int64_t kScales = 1;
  const Int8Factors* const factors = int8_factors();

  static __m256 value(__m256i code, float scale, float above_scale) {
    const __m256 wide = _mm256_cvtepi32_ps(code);
    const __m256 above = _mm256_mul_ps(wide, _mm256_set1_ps(above_scale));
    return _mm256_sub_ps(above, _mm256_fnmadd_ps(wide, _mm256_set1_ps(scale), above));
  }
  Floats256 read(const std::byte* codes, const std::byte* scale) const {
    const Int8Factors& by = factors[static_cast<int>(*scale)];
    Floats256 floats;
    for (int half = 0; half < 2; ++half) {
      const __m256i pairs = _mm256_cvtepi16_epi32(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 16 * half)));
      floats.first[half] = value(_mm256_slli_epi32(pairs, 24), by.uppermost, by.above_uppermost);
      floats.second[half] =
          value(_mm256_and_si256(pairs, _mm256_set1_epi32(-256)), by.second, by.above_second);
    }
    return floats;
  }
};

/// What half of the lanes take of a block of bfloat16s: even columns, then odd ones.
struct BFloat16Of256 {
  using Rounding = ToBFloat16Avx2;
  using Int8Columns = Int8Floats256;

  static __m256 even(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
  static __m256 odd(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
  }
  static __m256i pairs_of(const std::uint16_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static __m256 first(const std::uint16_t* block, int half) {
    return even(pairs_of(block + 16 * half));
  }
  static __m256 second(const std::uint16_t* block, int half) {
    return odd(pairs_of(block + 16 * half));
  }
  static Floats256 floats(const Pairs256& pairs) {
    return {{even(pairs.half[0]), even(pairs.half[1])}, {odd(pairs.half[0]), odd(pairs.half[1])}};
  }
};

/// Of float16s: the first sixteen columns, then the others.
struct Float16Of256 {
  using Rounding = ToFloat16Avx2;
  using Int8Columns = Int8Avx2<Rounding>;

  static __m256 first(const std::uint16_t* block, int half) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 8 * half)));
  }
  static __m256 second(const std::uint16_t* block, int half) { return first(block + 16, half); }
  static Floats256 floats(const Pairs256& halves) {
    Floats256 floats;
    const auto of = [](__m256i columns, __m256(&two)[2]) {
      two[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(columns));
      two[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(columns, 1));
    };
    of(halves.half[0], floats.first);
    of(halves.half[1], floats.second);
    return floats;
  }
};

/// The sixteen lanes in two registers. The bits are those of Avx512.
template <typename Element>
struct Avx2 {
  using Int8Columns = typename Element::Int8Columns;
  using Int4Columns = Int4Avx2<typename Element::Rounding>;
  using Int4Group = Int4GroupAvx2<typename Element::Rounding>;
  template <typename Codes, bool kOrdinary>
  using ByteGroup = ByteGroupAvx2<Codes, typename Element::Rounding, kOrdinary>;
  template <bool kZeros>
  using Int8Codes = Int8CodesAvx2<kZeros>;
  using Float8Codes = Float8CodesAvx2;
  using Packed = float;  // what the lanes take first of a block, then what they take second
  struct Sum {
    __m256 half[2];
  };
  static constexpr int kWeightRows = 2;
  static constexpr int kMostRows = 3;
  static constexpr int kAloneRows = 0;
  static constexpr bool kInt8Near = false;
  static constexpr std::int64_t kWideFrom = 8;
  static constexpr int kWideWeights = 4;
  static constexpr std::int64_t kWideRows = 3;

  template <int kRows>
  static void step(Sum (&sums)[kRows][2], const std::uint16_t* const (&w)[2], const Packed* a,
                   std::int64_t c, std::int64_t row_elements) {
    // One after the other: the first weights' registers are those of the second ones.
    for (int half = 0; half < 2; ++half) {
      const __m256 first[2] = {Element::first(w[0] + c, half), Element::first(w[1] + c, half)};
      for (int r = 0; r < kRows; ++r) {
        const __m256 activations = _mm256_loadu_ps(a + r * row_elements + c + 8 * half);
        for (int i = 0; i < 2; ++i) {
          sums[r][i].half[half] = _mm256_fmadd_ps(first[i], activations, sums[r][i].half[half]);
        }
      }
      const __m256 second[2] = {Element::second(w[0] + c, half), Element::second(w[1] + c, half)};
      for (int r = 0; r < kRows; ++r) {
        const __m256 activations = _mm256_loadu_ps(a + r * row_elements + c + 16 + 8 * half);
        for (int i = 0; i < 2; ++i) {
          sums[r][i].half[half] = _mm256_fmadd_ps(second[i], activations, sums[r][i].half[half]);
        }
      }
    }
  }
  template <int kRows>
  static void add(Sum (&sums)[kRows][2], std::int64_t row, const Pairs256& weights, const Packed* a,
                  std::int64_t row_elements) {
    add<kRows>(sums, row, Element::floats(weights), a, row_elements);
  }
  template <int kRows>
  static void add(Sum (&sums)[kRows][2], std::int64_t row, const Floats256& weights,
                  const Packed* a, std::int64_t row_elements) {
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < kRows; ++r) {
        const Packed* const from = a + r * row_elements + 8 * half;
        __m256& sum = sums[r][row].half[half];
        sum = _mm256_fmadd_ps(weights.first[half], _mm256_loadu_ps(from), sum);
        sum = _mm256_fmadd_ps(weights.second[half], _mm256_loadu_ps(from + 16), sum);
      }
    }
  }
  static void total(const Sum (&sums)[2], float (&out)[2]) {
    for (int i = 0; i < 2; ++i) {
      const __m256 half = _mm256_add_ps(sums[i].half[0], sums[i].half[1]);
      float q[4];
      _mm_storeu_ps(q, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
      out[i] = (q[0] + q[2]) + (q[1] + q[3]);
    }
  }
  static void totals(const Sum (&sums)[4], float (&out)[4]) {
    for (int i = 0; i < 4; i += 2) {
      const Sum two[2] = {sums[i], sums[i + 1]};
      float of_two[2];
      total(two, of_two);
      out[i] = of_two[0];
      out[i + 1] = of_two[1];
    }
  }
  /// One half after the other: the registers hold one of twelve sums.
  template <int kRows>
  static void add(Sum (&sums)[kRows][4], const Packed* w, std::int64_t w_elements, const Packed* a,
                  std::int64_t row_elements, std::int64_t columns) {
    for (int half = 0; half < 2; ++half) {
      __m256 own[kRows][4];
      for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < 4; ++i) own[r][i] = sums[r][i].half[half];
      }
      for (std::int64_t c = 8 * half; c < columns; c += 16) {
        __m256 activations[kRows];
        for (int r = 0; r < kRows; ++r) {
          activations[r] = _mm256_loadu_ps(a + r * row_elements + c);
        }
        for (int i = 0; i < 4; ++i) {
          const __m256 weights = _mm256_loadu_ps(w + i * w_elements + c);
          for (int r = 0; r < kRows; ++r) {
            own[r][i] = _mm256_fmadd_ps(weights, activations[r], own[r][i]);
          }
        }
      }
      for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < 4; ++i) sums[r][i].half[half] = own[r][i];
      }
    }
  }
  static void pack_block(const std::uint16_t* from, Packed* to) {
    for (int half = 0; half < 2; ++half) {
      _mm256_storeu_ps(to + 8 * half, Element::first(from, half));
      _mm256_storeu_ps(to + 16 + 8 * half, Element::second(from, half));
    }
  }
};

}  // namespace

const ProductKernels kAvx2Products = dots::kernels<Avx2<BFloat16Of256>>();
const ProductKernels kAvx2Float16Products = dots::kernels<Avx2<Float16Of256>>();

}  // namespace zi
#endif
