#pragma once

/// Builds a function for several levels of x86-64; the loader picks one. Put it on leaf functions:
/// what they call must be inlined to profit. Sanitizers and other processors get the plain build.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define ZI_SIMD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ZI_SIMD_CLONES
#endif
#define ZI_INLINE inline __attribute__((always_inline))
