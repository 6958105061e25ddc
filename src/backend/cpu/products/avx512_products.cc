#if defined(__x86_64__)
#include "backend/cpu/products/avx512_sums.h"
#include "backend/cpu/products/dot_products.h"
#include "packing/unpack_avx512.h"

namespace zi {
namespace {

/// A block's floats, as lanes take them: of bfloat16s even columns, and odd ones.
struct Floats512 {
  __m512 first;
  __m512 second;
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

/// What the lanes take of a block of bfloat16s: even columns, then odd ones.
struct BFloat16Of512 {
  using Block = __m512i;
  using Rounding = RoundedBits;
  using Int8Columns = Int8Floats512;
  static constexpr int kMostRows = 5;
  static constexpr int kAloneRows = 0;

  static Block load(const std::uint16_t* from) { return _mm512_loadu_si512(from); }
  static Floats512 floats(__m512i pairs) { return {first(pairs), second(pairs)}; }
  static __m512 first(Block pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
  static __m512 second(Block pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
  }
};

/// Of float16s: the first sixteen columns, then the others.
struct Float16Of512 {
  using Block = const std::uint16_t*;
  using Rounding = RoundedHalves;
  using Int8Columns = Int8Avx512<Rounding>;
  static constexpr int kMostRows = 6;
  static constexpr int kAloneRows = 1;

  static Block load(const std::uint16_t* from) { return from; }
  static Floats512 floats(__m512i halves) {
    return {_mm512_cvtph_ps(_mm512_castsi512_si256(halves)),
            _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1))};
  }
  static Floats512 floats(Block from) { return {first(from), second(from)}; }
  static __m512 first(Block from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static __m512 second(Block from) { return first(from + 16); }
};

/// Products of floats, which are exact, added one after the other. The bits are those of Avx2.
template <typename Element>
struct Avx512 {
  using Int8Columns = typename Element::Int8Columns;
  using Int4Columns = Int4Avx512<typename Element::Rounding>;
  using Int4Group = Int4GroupAvx512<typename Element::Rounding>;
  template <typename Codes, bool kOrdinary>
  using ByteGroup = ByteGroupAvx512<Codes, typename Element::Rounding, kOrdinary>;
  template <bool kZeros>
  using Int8Codes = Int8CodesAvx512<kZeros>;
  using Float8Codes = Float8CodesAvx512;
  using Packed = float;  // what the lanes take first of a block, then what they take second
  using Sum = __m512;
  static constexpr int kWeightRows = 4;
  static constexpr int kMostRows = Element::kMostRows;
  static constexpr int kAloneRows = Element::kAloneRows;
  static constexpr bool kInt8Near = false;
  static constexpr std::int64_t kWideFrom = 0;

  static typename Element::Block pairs(const std::uint16_t* from) { return Element::load(from); }
  template <int kRows>
  static void step(Sum (&sums)[kRows][4], const std::uint16_t* const (&w)[4], const Packed* a,
                   std::int64_t c, std::int64_t row_elements) {
    typename Element::Block blocks[4];
    for (int i = 0; i < 4; ++i) blocks[i] = Element::load(w[i] + c);
    const __m512 first[4] = {Element::first(blocks[0]), Element::first(blocks[1]),
                             Element::first(blocks[2]), Element::first(blocks[3])};
    for (int r = 0; r < kRows; ++r) {
      const __m512 activations = _mm512_loadu_ps(a + r * row_elements + c);
      for (int i = 0; i < 4; ++i) sums[r][i] = _mm512_fmadd_ps(first[i], activations, sums[r][i]);
    }
    const __m512 second[4] = {Element::second(blocks[0]), Element::second(blocks[1]),
                              Element::second(blocks[2]), Element::second(blocks[3])};
    for (int r = 0; r < kRows; ++r) {
      const __m512 activations = _mm512_loadu_ps(a + r * row_elements + c + 16);
      for (int i = 0; i < 4; ++i) sums[r][i] = _mm512_fmadd_ps(second[i], activations, sums[r][i]);
    }
  }
  template <int kRows, typename Pairs>
  static void add(Sum (&sums)[kRows][4], std::int64_t row, const Pairs& pairs, const Packed* a,
                  std::int64_t row_elements) {
    add<kRows>(sums, row, Element::floats(pairs), a, row_elements);
  }
  template <int kRows>
  static void add(Sum (&sums)[kRows][4], std::int64_t row, const Floats512& weights,
                  const Packed* a, std::int64_t row_elements) {
    for (int r = 0; r < kRows; ++r) {
      const Packed* const from = a + r * row_elements;
      sums[r][row] = _mm512_fmadd_ps(weights.first, _mm512_loadu_ps(from), sums[r][row]);
      sums[r][row] = _mm512_fmadd_ps(weights.second, _mm512_loadu_ps(from + 16), sums[r][row]);
    }
  }
  static void total(const Sum (&sums)[4], float (&out)[4]) { avx512_sums(sums, out); }
  static void pack_block(const std::uint16_t* from, Packed* to) {
    const typename Element::Block block = Element::load(from);
    _mm512_storeu_ps(to, Element::first(block));
    _mm512_storeu_ps(to + 16, Element::second(block));
  }
};

}  // namespace

const ProductKernels kAvx512Products = dots::kernels<Avx512<BFloat16Of512>>();
const ProductKernels kAvx512Float16Products = dots::kernels<Avx512<Float16Of512>>();

}  // namespace zi
#endif
