#if defined(__x86_64__)
#include "backend/cpu/products/avx512_sums.h"
#include "backend/cpu/products/dot_products.h"
#include "packing/unpack_avx512.h"

namespace zi {
namespace {

/// A block's floats: even columns, and odd ones.
struct Floats512 {
  __m512 evens;
  __m512 odds;
};

/// Rounds kInt8Weights, see Int8Factors.
struct Int8Floats512 {
  static constexpr std::int64_t kCodeBytes = 32;
  static constexpr std::int64_t kScales = 1;
  const Int8Factors* const factors = int8_factors();

  static __m512 value(__m512i code, float scale, float above_scale) {
    const __m512 wide = _mm512_cvtepi32_ps(code);
    const __m512 above = _mm512_mul_ps(wide, _mm512_set1_ps(above_scale));
    return _mm512_sub_ps(above, _mm512_fnmadd_ps(wide, _mm512_set1_ps(scale), above));
  }
  Floats512 read(const std::byte* codes, const std::byte* scale) const {
    const Int8Factors& by = factors[static_cast<int>(*scale)];
    const __m512i pairs =
        _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
    return {value(_mm512_slli_epi32(pairs, 24), by.uppermost, by.above_uppermost),
            value(_mm512_and_si512(pairs, _mm512_set1_epi32(-256)), by.second, by.above_second)};
  }
};

/// Products of floats, which are exact, added one after the other. The bits are those of Avx2.
struct Avx512 {
  using Int8Columns = Int8Floats512;
  using Int4Columns = Int4Avx512;
  using Int4Group = Int4GroupAvx512;
  template <typename Codes, bool kOrdinary>
  using ByteGroup = ByteGroupAvx512<Codes, RoundedBits, kOrdinary>;
  template <bool kZeros>
  using Int8Codes = Int8CodesAvx512<kZeros>;
  using Float8Codes = Float8CodesAvx512;
  using Packed = float;  // the even columns of a block, then the odd ones
  using Sum = __m512;
  static constexpr int kWeightRows = 4;
  static constexpr int kMostRows = 5;
  static constexpr int kAloneRows = 0;
  static constexpr bool kInt8Near = false;
  static constexpr std::int64_t kWideFrom = 0;

  static __m512 even(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
  static __m512 odd(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
  }
  template <int kRows>
  static void step(Sum (&sums)[kRows][4], const std::uint16_t* const (&w)[4], const Packed* a,
                   std::int64_t c, std::int64_t row_elements) {
    __m512i pairs[4];
    for (int i = 0; i < 4; ++i) pairs[i] = _mm512_loadu_si512(w[i] + c);
    const __m512 evens[4] = {even(pairs[0]), even(pairs[1]), even(pairs[2]), even(pairs[3])};
    for (int r = 0; r < kRows; ++r) {
      const __m512 activations = _mm512_loadu_ps(a + r * row_elements + c);
      for (int i = 0; i < 4; ++i) sums[r][i] = _mm512_fmadd_ps(evens[i], activations, sums[r][i]);
    }
    const __m512 odds[4] = {odd(pairs[0]), odd(pairs[1]), odd(pairs[2]), odd(pairs[3])};
    for (int r = 0; r < kRows; ++r) {
      const __m512 activations = _mm512_loadu_ps(a + r * row_elements + c + 16);
      for (int i = 0; i < 4; ++i) sums[r][i] = _mm512_fmadd_ps(odds[i], activations, sums[r][i]);
    }
  }
  template <int kRows>
  static void add(Sum (&sums)[kRows][4], std::int64_t row, __m512i pairs, const Packed* a,
                  std::int64_t row_elements) {
    add<kRows>(sums, row, Floats512{even(pairs), odd(pairs)}, a, row_elements);
  }
  template <int kRows>
  static void add(Sum (&sums)[kRows][4], std::int64_t row, const Floats512& weights,
                  const Packed* a, std::int64_t row_elements) {
    for (int r = 0; r < kRows; ++r) {
      const Packed* const from = a + r * row_elements;
      sums[r][row] = _mm512_fmadd_ps(weights.evens, _mm512_loadu_ps(from), sums[r][row]);
      sums[r][row] = _mm512_fmadd_ps(weights.odds, _mm512_loadu_ps(from + 16), sums[r][row]);
    }
  }
  static void total(const Sum (&sums)[4], float (&out)[4]) { avx512_sums(sums, out); }
  static void pack_block(const std::uint16_t* from, Packed* to) {
    const __m512i pairs = _mm512_loadu_si512(from);
    _mm512_storeu_ps(to, even(pairs));
    _mm512_storeu_ps(to + 16, odd(pairs));
  }
};

}  // namespace

const ProductKernels kAvx512Products = dots::kernels<Avx512>();

}  // namespace zi
#endif
