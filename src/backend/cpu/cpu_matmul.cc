#include "backend/cpu/cpu_matmul.h"

#include "zero_infer/log.h"

namespace zi {

CpuMatmul::CpuMatmul(ThreadPool& pool) : float_products_(pool) {
  if (CpuProducts::has(instruction_set())) products_.emplace(pool, instruction_set());
}

void CpuMatmul::warn_of_float32() {
  if (warned_ || instruction_set() >= InstructionSet::kAvx512Bf16) return;
  warned_ = true;
  log_warning(
      "this CPU has no bfloat16 products: weights are converted to float32 as they are used, which "
      "makes long prompts slow");
}

void CpuMatmul::warn_of_float16() {
  if (warned_) return;
  warned_ = true;
  log_warning(
      "products of float16 are made in float32 on a CPU, which is slow: --compute-dtype bfloat16 "
      "is faster");
}

void CpuMatmul::run(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w,
                    float* y, std::int64_t ld) {
  const bool bfloat16 = a_dtype == DType::kBFloat16 && CpuProducts::takes(w.format);
  if (bfloat16) warn_of_float32();
  if (a_dtype == DType::kFloat16 && products_) warn_of_float16();
  if (bfloat16 && products_) {
    products_->run(a, rows, w, y, ld);
  } else {
    float_products_.run(a, a_dtype, rows, w, y, ld);
  }
}

}  // namespace zi
