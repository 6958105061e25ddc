#include "backend/cpu/simd.h"

#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace zi::simd {
namespace {

ZI_SIMD_CLONES void widen_bfloat16(const std::uint16_t* src, float* dst, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    dst[i] = std::bit_cast<float>(static_cast<std::uint32_t>(src[i]) << 16);
  }
}

ZI_SIMD_CLONES void narrow_bfloat16(const float* src, std::uint16_t* dst, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(src[i]);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const std::uint32_t quiet = (bits >> 16) | 0x40u;  // NaN: rounding must not make it infinite
    dst[i] = static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  }
}

#if defined(__x86_64__)
// The compiler does not vectorise _Float16 conversions by itself, and the baseline has no
// instruction.
// By cpuid, because not every compiler's __builtin_cpu_supports knows f16c.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __builtin_cpu_supports("avx") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 &&
         (ecx & bit_F16C) != 0;
}
const bool kHasF16c = has_f16c();

__attribute__((target("avx,f16c"))) std::size_t widen_f16c(const std::uint16_t* src, float* dst,
                                                           std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(dst + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
  }
  return i;
}

__attribute__((target("avx,f16c"))) std::size_t narrow_f16c(const float* src, std::uint16_t* dst,
                                                            std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
  }
  return i;
}
#else
constexpr bool kHasF16c = false;
std::size_t widen_f16c(const std::uint16_t*, float*, std::size_t) { return 0; }
std::size_t narrow_f16c(const float*, std::uint16_t*, std::size_t) { return 0; }
#endif

}  // namespace

void to_float(const void* src, DType from, float* dst, std::size_t count) {
  if (from == DType::kFloat32) {
    if (src != dst) std::memcpy(dst, src, count * sizeof(float));
    return;
  }
  const auto* bits = static_cast<const std::uint16_t*>(src);
  if (from == DType::kBFloat16) {
    widen_bfloat16(bits, dst, count);
    return;
  }
  std::size_t i = kHasF16c ? widen_f16c(bits, dst, count) : 0;
  for (; i < count; ++i) dst[i] = float16_to_float(bits[i]);
}

void from_float(const float* src, void* dst, DType to, std::size_t count) {
  if (to == DType::kFloat32) {
    if (src != dst) std::memcpy(dst, src, count * sizeof(float));
    return;
  }
  auto* bits = static_cast<std::uint16_t*>(dst);
  if (to == DType::kBFloat16) {
    narrow_bfloat16(src, bits, count);
    return;
  }
  std::size_t i = kHasF16c ? narrow_f16c(src, bits, count) : 0;
  for (; i < count; ++i) bits[i] = float_to_float16(src[i]);
}

}  // namespace zi::simd
