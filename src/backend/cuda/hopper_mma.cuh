#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

/// The PTX of Hopper's asynchronous matrix units and of clusters, under names. It exists on compute
/// capability 9.0 alone (sm_90a). PTX ISA 9.0: 9.7.15 (wgmma), 5.5 (matrix descriptors).
namespace zi::ptx {

/// Describes a matrix in shared memory for `multiply_add_async`: rows of 64 16-bit elements, 128
/// bytes apart, from an address that is a multiple of 1024. Piece p (16 bytes) of row r lies at
/// piece p ^ r % 8, which `swizzled` gives in bytes. 16 columns on, the descriptor is 2 more.
__device__ inline std::uint64_t describe_rows(std::uint32_t shared) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kEightRows = std::uint64_t{1024 / 16} << 32;
  constexpr std::uint64_t kUnused = std::uint64_t{1} << 16;
  return kSwizzle128 | kEightRows | kUnused | (shared & 0x3ffffu) >> 4;
}

__device__ inline std::uint32_t swizzled(int row, int piece) {
  return static_cast<std::uint32_t>(row * 128 + ((piece ^ (row & 7)) << 4));
}

/// The same of a matrix whose rows are the contraction's steps: 16 bits each of 64 results, and
/// further 64 `blocks_apart` bytes on. 16 rows on, the descriptor is 128 more.
__device__ inline std::uint64_t describe_columns(std::uint32_t shared, std::uint32_t blocks_apart) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kEightRows = std::uint64_t{1024 / 16} << 32;
  return kSwizzle128 | kEightRows | std::uint64_t{blocks_apart / 16} << 16 |
         (shared & 0x3ffffu) >> 4;
}

/// Shows what was written to shared memory to the matrix units, once a barrier has passed.
__device__ inline void show_to_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

/// Before the first product, and whenever registers of sums were written since.
__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

/// Waits for all products but those that were committed last, kPending times: before their sums
/// are read, and before anything else takes the place of their factors.
template <int kPending>
__device__ inline void wait_for_products_but() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
__device__ inline void wait_for_products() { wait_for_products_but<0>(); }

/// A barrier in shared memory, at a multiple of 8, each of whose phases ends with `count` arrivals.
/// One thread makes it; then show_barriers, and a barrier of the block.
__device__ inline void make_barrier(std::uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(count) : "memory");
}
/// An arrival; what the thread read and wrote before is done.
__device__ inline void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
/// An arrival once the thread's copies so far have arrived.
__device__ inline void arrive_after_copies(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier) : "memory");
}
__device__ inline void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
/// An arrival after which the phase does not end before copies of so many bytes.
__device__ inline void arrive_expecting(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}
/// Starts a copy of `bytes`, a multiple of 16, and arrives at `barrier`, whose phase does not end
/// before the copy. By one thread. What was there before is read, and by matrix units alone.
__device__ inline void copy_bulk(std::uint32_t shared, const void* global, int bytes,
                                 std::uint32_t barrier) {
  arrive_expecting(barrier, bytes);
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}
/// The same of a box of a matrix that map_of_rows describes, from that element on; `shared` is a
/// multiple of 1024. It does not arrive: arrive_expecting says how many bytes come.
__device__ inline void copy_box(std::uint32_t shared, const CUtensorMap& map, int column, int row,
                                std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];\n" ::"r"(shared),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
/// Waits for the end of the phase of this parity: of the first phase it is 0. What was copied is
/// visible then, to matrix units as well.
__device__ inline void wait_for_phase(std::uint32_t barrier, int parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// Gives registers of a warpgroup back, or takes what others gave: each thread then has so many, a
/// multiple of 8. By all warps of the warpgroup.
template <int kCount>
__device__ inline void give_registers_but() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kCount));
}
template <int kCount>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kCount));
}

/// After wait_for_products: keeps the compiler from reading sums before it.
template <int kCount>
__device__ inline void take_sums(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

/// Says that this thread's earlier reads and writes of shared memory are done. All threads of all
/// blocks of the cluster call it, converged, and then the other half, in turn.
__device__ inline void arrive_at_cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
}
/// Waits until all have arrived; what they wrote before is visible.
__device__ inline void wait_at_cluster_barrier() {
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

/// Reads what is at `shared` in the memory of a block of the cluster.
__device__ inline float4 load_from_block(std::uint32_t shared, int block) {
  std::uint32_t there;
  float4 v;
  asm("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(there) : "r"(shared), "r"(block));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(there)
               : "memory");
  return v;
}

// The text of an instruction names its operands by number: first the sums.
#define ZI_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ZI_SUMS_16(i) ZI_SUMS_4(i), ZI_SUMS_4(i + 4), ZI_SUMS_4(i + 8), ZI_SUMS_4(i + 12)
#define ZI_SUMS_32(i) ZI_SUMS_16(i), ZI_SUMS_16(i + 16)
#define ZI_SUMS_64(i) ZI_SUMS_32(i), ZI_SUMS_32(i + 32)
#define ZI_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define ZI_NAMES_32 \
  ZI_NAMES_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ZI_NAMES_64                                                                    \
  ZI_NAMES_32                                                                          \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// Both factors in shared memory: `a_name` and `b_name` are the operands after the sums.
#define ZI_PRODUCTS(type, columns, sums, a_name, b_name)                                         \
  asm volatile(                                                                                  \
      "{.reg .pred add; setp.eq.u32 add, 0, 0;\n"                                                \
      "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" ZI_NAMES_##sums \
      "}, " a_name ", " b_name ", add, 1, 1, 0, 0;}\n"                                           \
      : ZI_SUMS_##sums(0)                                                                        \
      : "l"(a), "l"(b))

// `a` in registers; by_steps is 1 where rows of b are the contraction's steps.
#define ZI_KEPT_PRODUCTS(type, columns, sums, by_steps, a_names, b_name, add_name)               \
  asm volatile("{.reg .pred add; setp.ne.u32 add, " add_name                                     \
               ", 0;\n"                                                                          \
               "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type             \
               " {" ZI_NAMES_##sums "}, {" a_names "}, " b_name ", add, 1, 1, " #by_steps ";}\n" \
               : ZI_SUMS_##sums(0)                                                               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0))

#define ZI_OF_TYPE(PRODUCTS, ...)                     \
  do {                                                \
    if constexpr (std::is_same_v<T, __nv_bfloat16>) { \
      PRODUCTS("bf16", __VA_ARGS__);                  \
    } else {                                          \
      static_assert(std::is_same_v<T, __half>);       \
      PRODUCTS("f16", __VA_ARGS__);                   \
    }                                                 \
  } while (false)

/// sums (64, kColumns) += a (64, 16) . b (kColumns, 16)^T, by the four warps of a warpgroup. Warp w
/// holds rows 16 w .. 16 w + 15 as 16 x 8 tiles side by side, each as `multiply_add` leaves them.
/// 32, 64 or 128 columns.
template <typename T, int kColumns>
__device__ inline void multiply_add_async(float (&d)[kColumns / 2], std::uint64_t a,
                                          std::uint64_t b) {
  if constexpr (kColumns == 32) {
    ZI_OF_TYPE(ZI_PRODUCTS, 32, 16, "%16", "%17");
  } else if constexpr (kColumns == 64) {
    ZI_OF_TYPE(ZI_PRODUCTS, 64, 32, "%32", "%33");
  } else {
    static_assert(kColumns == 128);
    ZI_OF_TYPE(ZI_PRODUCTS, 128, 64, "%64", "%65");
  }
}

/// sums (64, kColumns) = a (64, 16) . b, or += with `add`, with `a` in registers as `multiply_add`
/// takes it, warp by warp: of b (kColumns, 16)^T as `describe_rows` says, 32 or 64 columns; or with
/// kSteps of b (16, kColumns) as `describe_columns` says, 64 or 128. Neither sums nor `a` may
/// change until wait_for_products.
template <typename T, int kColumns, bool kSteps>
__device__ inline void multiply_add_async(float (&d)[kColumns / 2], const std::uint32_t (&a)[4],
                                          std::uint64_t b, bool add) {
  if constexpr (kColumns == 32 && !kSteps) {
    ZI_OF_TYPE(ZI_KEPT_PRODUCTS, 32, 16, 0, "%16, %17, %18, %19", "%20", "%21");
  } else if constexpr (kColumns == 64 && !kSteps) {
    ZI_OF_TYPE(ZI_KEPT_PRODUCTS, 64, 32, 0, "%32, %33, %34, %35", "%36", "%37");
  } else if constexpr (kColumns == 64) {
    ZI_OF_TYPE(ZI_KEPT_PRODUCTS, 64, 32, 1, "%32, %33, %34, %35", "%36", "%37");
  } else {
    static_assert(kColumns == 128 && kSteps);
    ZI_OF_TYPE(ZI_KEPT_PRODUCTS, 128, 64, 1, "%64, %65, %66, %67", "%68", "%69");
  }
}

#undef ZI_SUMS_4
#undef ZI_SUMS_16
#undef ZI_SUMS_32
#undef ZI_SUMS_64
#undef ZI_NAMES_16
#undef ZI_NAMES_32
#undef ZI_NAMES_64
#undef ZI_PRODUCTS
#undef ZI_KEPT_PRODUCTS
#undef ZI_OF_TYPE

}  // namespace zi::ptx
