#include "backend/cuda/cublas_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <string>

#include "zero_infer/error.h"

namespace zi {
namespace {

/// The library of the version that this was built with: where the loader finds it, else where it
/// was at build time. It stays open: so does the GPU's context.
void* open_library(const char* stem) {
  const std::string name = fmt::format("{}.so.{}", stem, CUBLAS_VER_MAJOR);
  std::string reason;
  for (const std::string& path : std::array{name, std::string(ZI_CUDA_LIBRARY_DIR) + "/" + name}) {
    if (void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    const char* const text = dlerror();
    if (reason.empty() && text != nullptr) reason = text;
  }
  throw CudaError(
      fmt::format("{} cannot be loaded: {}; install cuBLAS or add its folder to LD_LIBRARY_PATH",
                  name, reason));
}

template <typename Function>
void find(void* library, const char* name, Function& function) {
  void* const symbol = dlsym(library, name);
  if (symbol == nullptr) throw CudaError(fmt::format("cuBLAS has no function {}", name));
  function = reinterpret_cast<Function>(symbol);
}

CublasLibrary load() {
  void* const library = open_library("libcublas");
  CublasLibrary cublas{};
  find(library, "cublasCreate_v2", cublas.create);
  find(library, "cublasDestroy_v2", cublas.destroy);
  find(library, "cublasSetStream_v2", cublas.set_stream);
  find(library, "cublasSetWorkspace_v2", cublas.set_workspace);
  find(library, "cublasSetMathMode", cublas.set_math_mode);
  find(library, "cublasGemmEx", cublas.gemm);
  find(library, "cublasGemmStridedBatchedEx", cublas.gemm_strided_batched);
  find(library, "cublasGetStatusString", cublas.status_string);
  return cublas;
}

CublasLtLibrary load_lt() {
  void* const library = open_library("libcublasLt");
  CublasLtLibrary lt{};
  find(library, "cublasLtMatmulDescCreate", lt.create_product);
  find(library, "cublasLtMatmulDescDestroy", lt.destroy_product);
  find(library, "cublasLtMatmulDescSetAttribute", lt.set_product);
  find(library, "cublasLtMatrixLayoutCreate", lt.create_layout);
  find(library, "cublasLtMatrixLayoutDestroy", lt.destroy_layout);
  find(library, "cublasLtMatmulPreferenceCreate", lt.create_preference);
  find(library, "cublasLtMatmulPreferenceDestroy", lt.destroy_preference);
  find(library, "cublasLtMatmulPreferenceSetAttribute", lt.set_preference);
  find(library, "cublasLtMatmulAlgoGetHeuristic", lt.choose_algorithms);
  find(library, "cublasLtMatmul", lt.multiply);
  return lt;
}

}  // namespace

const CublasLibrary& cublas_library() {
  static const CublasLibrary library = load();
  return library;
}

const CublasLtLibrary& cublas_lt_library() {
  static const CublasLtLibrary library = load_lt();
  return library;
}

cudaDataType_t cublas_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return CUDA_R_32F;
    case DType::kFloat16:
      return CUDA_R_16F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
  }
  throw Error("a product was given a dtype that does not exist");
}

void throw_cublas(cublasStatus_t status, const char* call, const char* file, int line) {
  throw CudaError(fmt::format("{} failed: {} at {}:{}", call,
                              cublas_library().status_string(status), file, line));
}

}  // namespace zi
