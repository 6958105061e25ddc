#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

/// The PTX that the attention kernels use, under names. PTX ISA 9.0: 9.7.14.5 (mma, ldmatrix) gives
/// the layout of fragments over the lanes of a warp, 9.7.9.25 (cp.async) the copies.
namespace zi::ptx {

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Hides from the compiler what a value was computed from, so that it keeps the value in registers
/// instead of computing it again wherever it is used.
__device__ inline void make_whole(const std::byte*& pointer) { asm("" : "+l"(pointer)); }

/// Starts a copy of 16 bytes to shared memory, past the L1 cache; without `present` it writes zeros
/// and reads nothing.
__device__ inline void copy_async_16(std::uint32_t shared, const void* global, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global),
               "r"(present ? 16 : 0)
               : "memory");
}

/// The same with 8 bytes, and with 4, through the L1 cache.
__device__ inline void copy_async_8(std::uint32_t shared, const void* global, bool present) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(shared), "l"(global),
               "r"(present ? 8 : 0)
               : "memory");
}

__device__ inline void copy_async_4(std::uint32_t shared, const void* global, bool present) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared), "l"(global),
               "r"(present ? 4 : 0)
               : "memory");
}

/// Waits for the calling thread's copies; a barrier shows them to the others.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;\n" ::: "memory"); }

/// Four 8x8 matrices of 16-bit elements: lanes 8i .. 8i + 7 give the addresses of the rows of
/// matrix i; lane l receives elements 2 (l % 4) and the next of row l / 4 of each.
__device__ inline void load_matrices(std::uint32_t (&m)[4], std::uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared)
               : "memory");
}

/// The same with rows and columns of each matrix exchanged.
__device__ inline void load_matrices_transposed(std::uint32_t (&m)[4], std::uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared)
               : "memory");
}

/// An 8x8 matrix of 16-bit elements with rows and columns exchanged: lane l gives and receives
/// elements 2 (l % 4) and the next of row l / 4.
__device__ inline std::uint32_t transpose(std::uint32_t pair) {
  std::uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(result) : "r"(pair));
  return result;
}

/// c (16, 8) += a (16, 16) . b (16, 8), accumulated in float32. Lane l holds of c rows l / 4 (first
/// two) and l / 4 + 8 at columns 2 (l % 4) and the next; of a the same rows, then again 8 columns
/// on; of b column l / 4 at rows 2 (l % 4) and the next, then 8 rows on.
template <typename T>
__device__ inline void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1);

template <>
__device__ inline void multiply_add<__nv_bfloat16>(float (&c)[4], const std::uint32_t (&a)[4],
                                                   std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void multiply_add<__half>(float (&c)[4], const std::uint32_t (&a)[4],
                                            std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Two values as a 16-bit pair, the first in the low half.
template <typename T>
__device__ inline std::uint32_t pack(float first, float second);

template <>
__device__ inline std::uint32_t pack<__nv_bfloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

template <>
__device__ inline std::uint32_t pack<__half>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

/// 2^x within two units in the last place; 0 for -inf, and instead of denormal numbers.
__device__ inline float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

/// Adds 1 to a counter in global memory, which follows `last` by 0; returns what it was. What the
/// block wrote before a barrier before this call is visible to whoever sees the result, and to its
/// block after a barrier (PTX ISA 9.0, 8.9: causality order).
__device__ inline std::uint32_t count_to(std::uint32_t* counter, std::uint32_t last) {
  std::uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;\n"
               : "=r"(before)
               : "l"(counter), "r"(last)
               : "memory");
  return before;
}

}  // namespace zi::ptx
