#include "backend/cpu/cpu_matmul.h"

#include "zero_infer/log.h"

namespace zi {

CpuMatmul::CpuMatmul(ThreadPool& pool) : float_products_(pool) {
  if (CpuProducts::has(instruction_set())) products_.emplace(pool, instruction_set());
}

void CpuMatmul::warn_of_float32(DType type) {
  const bool bfloat16 = type == DType::kBFloat16;
  const bool has_bfloat16 = instruction_set() >= InstructionSet::kAvx512Bf16;
  if (warned_ || bfloat16 == has_bfloat16) return;
  warned_ = true;
  log_warning(
      bfloat16
          ? "this CPU has no bfloat16 products: weights are converted to float32 as they are "
            "used, which makes long prompts slow"
          : "products of float16 are made in float32: of long prompts and many lanes, this CPU "
            "makes those of bfloat16 faster (--compute-dtype bfloat16)");
}

void CpuMatmul::run(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w,
                    float* y, std::int64_t ld) {
  const bool taken = CpuProducts::takes(a_dtype, w.format);
  if (taken) warn_of_float32(a_dtype);
  if (taken && products_) {
    products_->run(a, a_dtype, rows, w, y, ld);
  } else {
    float_products_.run(a, a_dtype, rows, w, y, ld);
  }
}

}  // namespace zi
