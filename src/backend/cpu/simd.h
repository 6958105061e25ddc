#pragma once

#include <cstddef>
#include <cstdint>

#include "base/instruction_set.h"
#include "base/simd_clones.h"
#include "zero_infer/dtype.h"

namespace zi::simd {

/// Sixteen floats: the unit in which all sums of this backend are cut, so that a row's bits depend
/// neither on its address nor on how a compiler unrolls.
inline constexpr std::int64_t kLanes = 16;

/// Sixteen floats in registers of kBytes: compilers make poor code of vectors that are wider than
/// the registers. What takes vectors is inlined: by value they have no calling convention that all
/// instruction sets share.
template <int kBytes>
struct Lanes {
  typedef float Piece __attribute__((vector_size(kBytes)));
  typedef std::int32_t IntPiece __attribute__((vector_size(kBytes)));
  /// A piece as it lies among floats.
  typedef float StoredPiece __attribute__((vector_size(kBytes), aligned(4), may_alias));
  static constexpr int kPieces = 64 / kBytes;

  Piece piece[kPieces];
};

#define ZI_SIMD_OPERATOR(op)                                                            \
  template <int kBytes>                                                                 \
  ZI_INLINE Lanes<kBytes> operator op(const Lanes<kBytes>& a, const Lanes<kBytes>& b) { \
    Lanes<kBytes> y;                                                                    \
    for (int i = 0; i < y.kPieces; ++i) y.piece[i] = a.piece[i] op b.piece[i];          \
    return y;                                                                           \
  }                                                                                     \
  template <int kBytes>                                                                 \
  ZI_INLINE Lanes<kBytes> operator op(const Lanes<kBytes>& a, float b) {                \
    Lanes<kBytes> y;                                                                    \
    for (int i = 0; i < y.kPieces; ++i) y.piece[i] = a.piece[i] op b;                   \
    return y;                                                                           \
  }                                                                                     \
  template <int kBytes>                                                                 \
  ZI_INLINE Lanes<kBytes> operator op(float a, const Lanes<kBytes>& b) {                \
    Lanes<kBytes> y;                                                                    \
    for (int i = 0; i < y.kPieces; ++i) y.piece[i] = a op b.piece[i];                   \
    return y;                                                                           \
  }                                                                                     \
  template <int kBytes, typename Other>                                                 \
  ZI_INLINE void operator op##=(Lanes<kBytes>& a, const Other& b) {                     \
    a = a op b;                                                                         \
  }
ZI_SIMD_OPERATOR(+)
ZI_SIMD_OPERATOR(-)
ZI_SIMD_OPERATOR(*)
ZI_SIMD_OPERATOR(/)
#undef ZI_SIMD_OPERATOR

// Piece by piece: a copy of all sixteen goes through memory in smaller parts. GCC makes vector
// moves of memcpy; clang with the address sanitizer, a call for each, which takes half of
// attention's time.
template <int kBytes>
ZI_INLINE void load(Lanes<kBytes>& v, const float* p) {
  for (int i = 0; i < v.kPieces; ++i) {
#ifdef __clang__
    v.piece[i] = *reinterpret_cast<const typename Lanes<kBytes>::StoredPiece*>(p + i * kBytes / 4);
#else
    __builtin_memcpy(&v.piece[i], p + i * (kBytes / 4), sizeof v.piece[i]);
#endif
  }
}
template <int kBytes>
ZI_INLINE void store(const Lanes<kBytes>& v, float* p) {
  for (int i = 0; i < v.kPieces; ++i) {
#ifdef __clang__
    *reinterpret_cast<typename Lanes<kBytes>::StoredPiece*>(p + i * kBytes / 4) = v.piece[i];
#else
    __builtin_memcpy(p + i * (kBytes / 4), &v.piece[i], sizeof v.piece[i]);
#endif
  }
}
template <int kBytes>
ZI_INLINE void fill(Lanes<kBytes>& v, float value) {
  for (int i = 0; i < v.kPieces; ++i) v.piece[i] = typename Lanes<kBytes>::Piece{} + value;
}
/// Lane by lane: x < bound ? below : other.
template <int kBytes>
ZI_INLINE Lanes<kBytes> less(const Lanes<kBytes>& x, float bound, const Lanes<kBytes>& below,
                             const Lanes<kBytes>& other) {
  Lanes<kBytes> y;
  for (int i = 0; i < y.kPieces; ++i) {
    y.piece[i] = x.piece[i] < bound ? below.piece[i] : other.piece[i];
  }
  return y;
}

typedef float Quarter __attribute__((vector_size(16)));

/// Lane i + lane i + 4 + lane i + 8 + lane i + 12, in the order of `sum`.
template <int kBytes>
ZI_INLINE Quarter quarter(const Lanes<kBytes>& v) {
  if constexpr (kBytes == 16) {
    return (v.piece[0] + v.piece[2]) + (v.piece[1] + v.piece[3]);
  } else {
    typename Lanes<32>::Piece half;
    if constexpr (kBytes == 32) {
      half = v.piece[0] + v.piece[1];
    } else {
      half = __builtin_shufflevector(v.piece[0], v.piece[0], 0, 1, 2, 3, 4, 5, 6, 7) +
             __builtin_shufflevector(v.piece[0], v.piece[0], 8, 9, 10, 11, 12, 13, 14, 15);
    }
    return __builtin_shufflevector(half, half, 0, 1, 2, 3) +
           __builtin_shufflevector(half, half, 4, 5, 6, 7);
  }
}

/// The sum of the lanes, always in the same tree.
template <int kBytes>
ZI_INLINE float sum(const Lanes<kBytes>& v) {
  const Quarter q = quarter(v);
  return (q[0] + q[2]) + (q[1] + q[3]);
}

/// The sums of sixteen vectors, each in the tree of `sum`: lane i is that of v[i].
template <int kBytes>
ZI_INLINE void sums(Lanes<kBytes>& out, const Lanes<kBytes> (&v)[kLanes]) {
  Quarter all[4];
  for (int part = 0; part < 4; ++part) {
    Quarter q[4];
    for (int i = 0; i < 4; ++i) q[i] = quarter(v[4 * part + i]);
    const Quarter low = __builtin_shufflevector(q[0], q[1], 0, 1, 4, 5) +
                        __builtin_shufflevector(q[0], q[1], 2, 3, 6, 7);
    const Quarter high = __builtin_shufflevector(q[2], q[3], 0, 1, 4, 5) +
                         __builtin_shufflevector(q[2], q[3], 2, 3, 6, 7);
    all[part] = __builtin_shufflevector(low, high, 0, 2, 4, 6) +
                __builtin_shufflevector(low, high, 1, 3, 5, 7);
  }
  if constexpr (kBytes == 16) {
    for (int i = 0; i < 4; ++i) out.piece[i] = all[i];
  } else {
    for (int i = 0; i < 2; ++i) {
      out.piece[i] = __builtin_shufflevector(all[2 * i], all[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7);
    }
  }
}
/// Fewer shuffles where registers have all sixteen lanes.
ZI_INLINE void sums(Lanes<64>& out, const Lanes<64> (&v)[kLanes]) {
  typedef Lanes<64>::Piece Piece;
  Piece h[8];  // halves of v[i], then of v[i + 8]
  for (int i = 0; i < 8; ++i) {
    const Piece& a = v[i].piece[0];
    const Piece& b = v[i + 8].piece[0];
    h[i] =
        __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
        __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  Piece q[4];  // quarters of v[i], v[i + 4], v[i + 8], v[i + 12]
  for (int i = 0; i < 4; ++i) {
    q[i] = __builtin_shufflevector(h[i], h[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25,
                                   26, 27) +
           __builtin_shufflevector(h[i], h[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28,
                                   29, 30, 31);
  }
  Piece pairs[2];
  for (int i = 0; i < 2; ++i) {
    const Piece& a = q[2 * i];
    const Piece& b = q[2 * i + 1];
    pairs[i] =
        __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
        __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  out.piece[0] = __builtin_shufflevector(pairs[0], pairs[1], 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24,
                                         26, 12, 14, 28, 30) +
                 __builtin_shufflevector(pairs[0], pairs[1], 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25,
                                         27, 13, 15, 29, 31);
}

ZI_INLINE Quarter larger(const Quarter& a, const Quarter& b) { return a < b ? b : a; }

/// The largest lane.
template <int kBytes>
ZI_INLINE float most(const Lanes<kBytes>& v) {
  Quarter m;
  if constexpr (kBytes == 16) {
    m = larger(larger(v.piece[0], v.piece[1]), larger(v.piece[2], v.piece[3]));
  } else {
    typename Lanes<32>::Piece half;
    if constexpr (kBytes == 32) {
      half = v.piece[0] < v.piece[1] ? v.piece[1] : v.piece[0];
    } else {
      const auto other =
          __builtin_shufflevector(v.piece[0], v.piece[0], 8, 9, 10, 11, 12, 13, 14, 15);
      half = __builtin_shufflevector(v.piece[0], v.piece[0], 0, 1, 2, 3, 4, 5, 6, 7);
      half = half < other ? other : half;
    }
    m = larger(__builtin_shufflevector(half, half, 0, 1, 2, 3),
               __builtin_shufflevector(half, half, 4, 5, 6, 7));
  }
  m = larger(m, __builtin_shufflevector(m, m, 2, 3, 0, 1));
  return m[0] < m[1] ? m[1] : m[0];
}

/// e^x to 2 units in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, and the Taylor polynomial of
/// degree 7 in r. Below -87 the result is 0, above 88 it is infinite.
template <int kBytes>
ZI_INLINE void exp(Lanes<kBytes>& y, const Lanes<kBytes>& x) {
  typedef typename Lanes<kBytes>::Piece Piece;
  typedef typename Lanes<kBytes>::IntPiece IntPiece;
  const Piece low = Piece{} - 87.0f;
  const Piece high = Piece{} + 88.0f;
  for (int i = 0; i < y.kPieces; ++i) {
    const Piece v = x.piece[i];
    Piece c = v < low ? low : v;
    c = c > high ? high : c;
    // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
    const Piece shifted = c * 1.44269504088896341f + 12582912.0f;
    const Piece n = shifted - 12582912.0f;
    Piece r = c - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Piece p = Piece{} + 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const IntPiece scale = (__builtin_convertvector(n, IntPiece) + 127) << 23;
    Piece power;
    __builtin_memcpy(&power, &scale, sizeof power);
    const Piece result = p * power;
    const Piece small = v < low ? Piece{} : result;
    y.piece[i] = v > high ? Piece{} + __builtin_inff() : small;
  }
}

/// Defines `void name parameters`, which calls the ZI_INLINE template name_with<Lanes<N>> arguments
/// with the register width N of instruction_set().
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define ZI_SIMD_FUNCTION(name, parameters, arguments)                                             \
  __attribute__((target(                                                                          \
      "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) static void name##_avx512 parameters {     \
    name##_with<zi::simd::Lanes<64>> arguments;                                                   \
  }                                                                                               \
  __attribute__((target("avx2,fma"))) static void name##_avx2 parameters {                        \
    name##_with<zi::simd::Lanes<32>> arguments;                                                   \
  }                                                                                               \
  static void name##_baseline parameters { name##_with<zi::simd::Lanes<16>> arguments; }          \
  void name parameters {                                                                          \
    static const auto best = zi::instruction_set() >= zi::InstructionSet::kAvx512 ? name##_avx512 \
                             : zi::instruction_set() >= zi::InstructionSet::kAvx2                 \
                                 ? name##_avx2                                                    \
                                 : name##_baseline;                                               \
    best arguments;                                                                               \
  }
#else
#define ZI_SIMD_FUNCTION(name, parameters, arguments) \
  void name parameters { name##_with<zi::simd::Lanes<16>> arguments; }
#endif

/// Contiguous conversions, vectorised; bits as zi::convert.
void to_float(const void* src, DType from, float* dst, std::size_t count);
void from_float(const float* src, void* dst, DType to, std::size_t count);

}  // namespace zi::simd
