#pragma once

#include <cublasLt.h>
#include <cublas_v2.h>

#include "zero_infer/dtype.h"

namespace zi {

/// The functions of cuBLAS that are used, from the shared library. It is loaded with the first CUDA
/// ops and not with the program: its relocations and initialisers take 200 MB of memory, which a
/// run on the CPU backend must not pay.
struct CublasLibrary {
  // Written out, since the header overloads these two for C++.
  using Gemm = cublasStatus_t (*)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m,
                                  int n, int k, const void* alpha, const void* a,
                                  cudaDataType a_type, int lda, const void* b, cudaDataType b_type,
                                  int ldb, const void* beta, void* c, cudaDataType c_type, int ldc,
                                  cublasComputeType_t, cublasGemmAlgo_t);
  using GemmStridedBatched = cublasStatus_t (*)(cublasHandle_t, cublasOperation_t,
                                                cublasOperation_t, int m, int n, int k,
                                                const void* alpha, const void* a,
                                                cudaDataType a_type, int lda, long long stride_a,
                                                const void* b, cudaDataType b_type, int ldb,
                                                long long stride_b, const void* beta, void* c,
                                                cudaDataType c_type, int ldc, long long stride_c,
                                                int count, cublasComputeType_t, cublasGemmAlgo_t);

  decltype(&cublasCreate_v2) create;
  decltype(&cublasDestroy_v2) destroy;
  decltype(&cublasSetStream_v2) set_stream;
  decltype(&cublasSetWorkspace_v2) set_workspace;
  decltype(&cublasSetMathMode) set_math_mode;
  Gemm gemm;
  GemmStridedBatched gemm_strided_batched;
  decltype(&cublasGetStatusString) status_string;
};

/// Loads it at the first call. Throws CudaError with the loader's reason.
const CublasLibrary& cublas_library();

/// The same of cuBLASLt, which cuBLAS is made of. A cublasHandle_t serves as its handle.
struct CublasLtLibrary {
  decltype(&cublasLtMatmulDescCreate) create_product;
  decltype(&cublasLtMatmulDescDestroy) destroy_product;
  decltype(&cublasLtMatmulDescSetAttribute) set_product;
  decltype(&cublasLtMatrixLayoutCreate) create_layout;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
  decltype(&cublasLtMatmulAlgoGetHeuristic) choose_algorithms;
  decltype(&cublasLtMatmul) multiply;
};

/// Loads it at the first call. Throws CudaError with the loader's reason.
const CublasLtLibrary& cublas_lt_library();

/// The libraries' name of a type.
cudaDataType_t cublas_type(DType dtype);

/// Throws CudaError `call failed: text` with file and line.
[[noreturn]] void throw_cublas(cublasStatus_t status, const char* call, const char* file, int line);

}  // namespace zi

/// Checks a call of either library.
#define ZI_CUBLAS(call)                                         \
  do {                                                          \
    const cublasStatus_t zi_status = (call);                    \
    if (zi_status != CUBLAS_STATUS_SUCCESS) {                   \
      ::zi::throw_cublas(zi_status, #call, __FILE__, __LINE__); \
    }                                                           \
  } while (false)
