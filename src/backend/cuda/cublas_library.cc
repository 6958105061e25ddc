#include "backend/cuda/cublas_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <string>

#include "zero_infer/error.h"

namespace zi {
namespace {

/// The library of the version that this was built with: where the loader finds it, else where it
/// was at build time.
void* open_library() {
  const std::string name = fmt::format("libcublas.so.{}", CUBLAS_VER_MAJOR);
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
  void* const library = open_library();  // stays open: so does the GPU's context
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

}  // namespace

const CublasLibrary& cublas_library() {
  static const CublasLibrary library = load();
  return library;
}

}  // namespace zi
