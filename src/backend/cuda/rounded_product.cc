#include "backend/cuda/rounded_product.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <tuple>

#include "backend/cuda/cublas_library.h"
#include "zero_infer/recent_map.h"

namespace zi {
namespace {

constexpr std::size_t kKeptAlgorithms = 256;

/// One of cuBLASLt's descriptions, which ends with its owner.
template <typename Handle>
class Owned {
 public:
  using Destroy = cublasStatus_t (*)(Handle);
  explicit Owned(Destroy destroy) : destroy_(destroy) {}
  ~Owned() {
    if (handle_ != nullptr) destroy_(handle_);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

  Handle* place() { return &handle_; }
  operator Handle() const { return handle_; }

 private:
  Handle handle_ = nullptr;
  Destroy destroy_;
};

class Layout : public Owned<cublasLtMatrixLayout_t> {
 public:
  /// A matrix (columns, rows) as we say, with rows `ld` elements apart.
  Layout(cudaDataType_t type, std::int64_t rows, std::int64_t columns, std::int64_t ld)
      : Owned(cublas_lt_library().destroy_layout) {
    ZI_CUBLAS(cublas_lt_library().create_layout(place(), type, static_cast<std::uint64_t>(rows),
                                                static_cast<std::uint64_t>(columns), ld));
  }
};

template <typename Value>
void set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute, Value value) {
  ZI_CUBLAS(cublas_lt_library().set_product(product, attribute, &value, sizeof(value)));
}

template <typename Value>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
         Value value) {
  ZI_CUBLAS(cublas_lt_library().set_preference(preference, attribute, &value, sizeof(value)));
}

cublasLtEpilogue_t epilogue_of(std::optional<Activation> activation, bool bias) {
  if (!activation) return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  if (*activation == Activation::kRelu) {
    return bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
  }
  return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
}

/// The largest power of two up to 256, more than which no kernel needs, that divides an address.
std::uint32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<std::uintptr_t>(address) | 256u;
  return std::uint32_t{1} << std::countr_zero(bits);
}

/// Equal for calls that the same algorithm does.
struct Key {
  std::int64_t rows, w_rows, cols, ld;
  DType type;
  cublasLtEpilogue_t epilogue;
  std::array<std::uint32_t, 4> alignments;  // of a, w, bias and y

  auto operator<=>(const Key&) const = default;
};

}  // namespace

struct RoundedProduct::State {
  struct Choice {
    bool exists = false;
    cublasLtMatmulAlgo_t algorithm = {};
  };

  cublasLtHandle_t handle;
  std::span<std::byte> workspace;
  RecentMap<Key, Choice> choices{kKeptAlgorithms};

  Choice choose(const Key& key, cublasLtMatmulDesc_t product, const Layout& w, const Layout& a,
                const Layout& y) const;
};

RoundedProduct::RoundedProduct(cublasHandle_t handle, std::span<std::byte> workspace)
    : state_(new State{reinterpret_cast<cublasLtHandle_t>(handle), workspace}) {}

RoundedProduct::~RoundedProduct() = default;

bool RoundedProduct::has(Activation activation) {
  return activation == Activation::kGeluTanh || activation == Activation::kRelu;
}

RoundedProduct::State::Choice RoundedProduct::State::choose(const Key& key,
                                                            cublasLtMatmulDesc_t product,
                                                            const Layout& w, const Layout& a,
                                                            const Layout& y) const {
  const CublasLtLibrary& lt = cublas_lt_library();
  Owned<cublasLtMatmulPreference_t> preference(lt.destroy_preference);
  ZI_CUBLAS(lt.create_preference(preference.place()));
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace.size());
  // As CudaMatmul's: parts of sums are not added in 16 bits.
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.alignments[1]);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.alignments[0]);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.alignments[3]);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.alignments[3]);
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status =
      lt.choose_algorithms(handle, product, w, a, y, y, preference, 1, &best, &found);
  return {status == CUBLAS_STATUS_SUCCESS && found > 0, best.algo};
}

bool RoundedProduct::run(const Shape& s, cudaStream_t stream) {
  const CublasLtLibrary& lt = cublas_lt_library();
  const cudaDataType_t type = cublas_type(s.type);
  const cublasLtEpilogue_t epilogue = epilogue_of(s.activation, s.bias != nullptr);
  Owned<cublasLtMatmulDesc_t> product(lt.destroy_product);
  ZI_CUBLAS(lt.create_product(product.place(), CUBLAS_COMPUTE_32F, CUDA_R_32F));
  // cuBLASLt counts columns first: y^T (w_rows, rows) = w (w_rows, cols) . a^T (cols, rows).
  set(product, CUBLASLT_MATMUL_DESC_TRANSA, static_cast<std::int32_t>(CUBLAS_OP_T));
  set(product, CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<std::uint32_t>(epilogue));
  if (s.bias != nullptr) set(product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, s.bias);
  const Layout w(type, s.cols, s.w_rows, s.cols);
  const Layout a(type, s.cols, s.rows, s.cols);
  const Layout y(type, s.w_rows, s.rows, s.ld);

  const Key key{s.rows,
                s.w_rows,
                s.cols,
                s.ld,
                s.type,
                epilogue,
                {alignment_of(s.a), alignment_of(s.w), alignment_of(s.bias), alignment_of(s.y)}};
  State::Choice* choice = state_->choices.find(key);
  if (choice == nullptr) {
    const State::Choice chosen = state_->choose(key, product, w, a, y);
    choice = &state_->choices.add(key);
    *choice = chosen;
  }
  if (!choice->exists) return false;
  const float one = 1, zero = 0;
  ZI_CUBLAS(lt.multiply(state_->handle, product, &one, s.w, w, s.a, a, &zero, s.y, y, s.y, y,
                        &choice->algorithm, state_->workspace.data(), state_->workspace.size(),
                        stream));
  return true;
}

}  // namespace zi
