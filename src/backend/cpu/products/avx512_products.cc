#if defined(__x86_64__)
#include "backend/cpu/products/avx512_sums.h"
#include "backend/cpu/products/dot_products.h"

namespace zi {
namespace {

/// Products of floats, which are exact, added one after the other. The bits are those of Avx2.
struct Avx512 {
  using Packed = float;  // the even columns of a block, then the odd ones
  using Sum = __m512;
  static constexpr int kWeightRows = 4;
  static constexpr int kMostRows = 5;
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
