#if defined(__x86_64__)
#include "backend/cpu/products/avx512_sums.h"
#include "backend/cpu/products/dot_products.h"
#include "packing/unpack_avx512.h"
#include "packing/unpack_avx512_pairs.h"

namespace zi {
namespace {

/// Both products of a lane by one instruction.
struct Avx512Bf16 {
  using Int8Columns = Int8Avx512<RoundedPairs>;
  using Int4Columns = Int4Avx512<RoundedBits>;
  using Int4Group = Int4GroupAvx512<RoundedBits>;
  template <typename Codes, bool kOrdinary>
  using ByteGroup =
      ByteGroupAvx512<Codes, std::conditional_t<kOrdinary, RoundedPairs, RoundedBits>, kOrdinary>;
  template <bool kZeros>
  using Int8Codes = Int8CodesAvx512<kZeros>;
  using Float8Codes = Float8CodesAvx512;
  using Packed = std::uint16_t;
  using Sum = __m512;
  static constexpr int kWeightRows = 4;
  static constexpr int kMostRows = 6;
  static constexpr int kAloneRows = 1;
  static constexpr bool kInt8Near = true;
  static constexpr std::int64_t kWideFrom = 0;

  static __m512bh block(const std::uint16_t* from) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from));
  }
  static __m512i pairs(const std::uint16_t* from) { return _mm512_loadu_si512(from); }
  template <int kRows>
  static void step(Sum (&sums)[kRows][4], const std::uint16_t* const (&w)[4], const Packed* a,
                   std::int64_t c, std::int64_t row_elements) {
    const __m512bh weights[4] = {block(w[0] + c), block(w[1] + c), block(w[2] + c),
                                 block(w[3] + c)};
    for (int r = 0; r < kRows; ++r) {
      const __m512bh activations = block(a + r * row_elements + c);
      for (int i = 0; i < 4; ++i) {
        sums[r][i] = _mm512_dpbf16_ps(sums[r][i], weights[i], activations);
      }
    }
  }
  template <int kRows>
  static void add(Sum (&sums)[kRows][4], std::int64_t row, __m512i pairs, const Packed* a,
                  std::int64_t row_elements) {
    const auto weights = reinterpret_cast<__m512bh>(pairs);
    for (int r = 0; r < kRows; ++r) {
      sums[r][row] = _mm512_dpbf16_ps(sums[r][row], weights, block(a + r * row_elements));
    }
  }
  static void total(const Sum (&sums)[4], float (&out)[4]) { avx512_sums(sums, out); }
  static void pack_block(const std::uint16_t* from, Packed* to) {
    _mm512_storeu_si512(to, _mm512_loadu_si512(from));
  }
};

}  // namespace

const ProductKernels kAvx512Bf16Products = dots::kernels<Avx512Bf16>();

}  // namespace zi
#endif
