#include "backend/cpu/products/cpu_products.h"

#include <fmt/format.h>

#include <algorithm>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Packed activations of a group of rows; for more rows than these hold, the weights stream again.
constexpr std::size_t kPackedBytes = 32u << 20;
/// Fewer activations than this are packed, and smaller products made, before a second thread has
/// woken up.
constexpr std::int64_t kParallelActivations = 32 << 10;
constexpr std::int64_t kParallelProducts = 64 << 10;
/// Weights of a job: few enough that all threads end together, and many enough to stream; where
/// many rows of activations pass by, as many as a core's second-level cache keeps.
constexpr std::int64_t kStreamedBytes = 96 << 10;
constexpr std::int64_t kKeptBytes = 512 << 10;
constexpr std::int64_t kJobsOfThread = 4;
/// Of packed rows that nobody has asked memory for yet, and of its line.
constexpr std::int64_t kAskedBytes = 32 << 10;
constexpr std::int64_t kLineBytes = 64;

/// Memory brings many of these lines at the same time, while unpacking them would wait for one
/// after the other.
void ask_for(const std::byte* from, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += kLineBytes) __builtin_prefetch(from + i, 0, 2);
}

const ProductKernels* kernels_of(InstructionSet set, DType type) {
#if defined(__x86_64__)
  const bool float16 = type == DType::kFloat16;
  switch (set) {
    case InstructionSet::kAmx:
      return float16 ? &kAvx512Float16Products : &kAmxProducts;
    case InstructionSet::kAvx512Bf16:
      return float16 ? &kAvx512Float16Products : &kAvx512Bf16Products;
    case InstructionSet::kAvx512:
      return float16 ? &kAvx512Float16Products : &kAvx512Products;
    case InstructionSet::kAvx2:
      return float16 ? &kAvx2Float16Products : &kAvx2Products;
    case InstructionSet::kBaseline:
      break;
  }
#endif
  static_cast<void>(set);
  static_cast<void>(type);
  return nullptr;
}

const ProductKernels& kernels_there(InstructionSet set, DType type) {
  const ProductKernels* const kernels = kernels_of(set, type);
  if (kernels == nullptr || set > instruction_set()) {
    throw Error(fmt::format("this CPU has no products with {}", name_of(set)));
  }
  return *kernels;
}

}  // namespace

bool CpuProducts::has(InstructionSet set) { return kernels_of(set, DType::kBFloat16) != nullptr; }

bool CpuProducts::takes(DType a_dtype, const WeightFormat& format) {
  return a_dtype != DType::kFloat32 && (format.packed() || format == a_dtype);
}

CpuProducts::CpuProducts(ThreadPool& pool, InstructionSet set)
    : pool_(pool),
      set_(set),
      bfloat16_(kernels_there(set, DType::kBFloat16)),
      float16_(kernels_there(set, DType::kFloat16)),
      threads_(static_cast<std::size_t>(pool.threads())) {}

std::int64_t CpuProducts::job_rows(const ProductKernels& kernels, std::int64_t rows,
                                   const RowBlockMatrix& w, const WeightReader& weights) const {
  const std::int64_t bytes = kernels.streams(rows, weights.padded_cols)
                                 ? kStreamedBytes / weights.row_bytes
                                 : kKeptBytes / (weights.padded_cols * 2);
  const std::int64_t jobs = kJobsOfThread * pool_.threads();
  const std::int64_t shared = ceil_div(w.padded_rows(), jobs);
  const std::int64_t multiple = kernels.job_rows;
  const std::int64_t wanted = std::min({bytes, shared, w.rows_per_block});
  return ceil_div(std::max(wanted, multiple), multiple) * multiple;
}

void CpuProducts::run(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w,
                      float* y, std::int64_t ld) {
  if (rows == 0 || w.padded_rows() == 0) return;
  const ProductKernels& kernels = a_dtype == DType::kFloat16 ? float16_ : bfloat16_;
  const WeightReader weights(w, a_dtype, set_);
  const auto row_bytes = kernels.packed_bytes(kernels.panel_rows, weights.padded_cols) /
                         static_cast<std::size_t>(kernels.panel_rows);
  const std::int64_t group =
      std::max<std::int64_t>(64, static_cast<std::int64_t>(kPackedBytes / row_bytes) / 64 * 64);
  const auto* const from = static_cast<const std::uint16_t*>(a);
  for (std::int64_t row = 0; row < rows; row += group) {
    run_group(kernels, from + row * w.cols, std::min(group, rows - row), w, weights, y + row * ld,
              ld);
  }
}

void CpuProducts::run_group(const ProductKernels& kernels, const std::uint16_t* a,
                            std::int64_t rows, const RowBlockMatrix& w, const WeightReader& weights,
                            float* y, std::int64_t ld) {
  packed_.reserve(kernels.packed_bytes(rows, weights.padded_cols));
  pool_.run(
      ceil_div(rows, kernels.panel_rows),
      [&](std::int64_t panel, int) { kernels.pack(a, rows, w.cols, panel, packed_.data()); },
      rows * w.cols >= kParallelActivations);

  const std::int64_t height = job_rows(kernels, rows, w, weights);
  const std::int64_t jobs_of_block = ceil_div(w.rows_per_block, height);
  const std::size_t scratch = kernels.scratch_bytes(rows, weights.padded_cols, height);
  for (OfThread& own : threads_) {
    own.scratch.reserve(scratch);
    own.next = nullptr;
  }
  const auto multiply = [&](std::int64_t index, int thread) {
    OfThread& own = threads_[static_cast<std::size_t>(thread)];
    const std::int64_t block = index / jobs_of_block;
    const std::int64_t first = index % jobs_of_block * height;
    const std::int64_t count = std::min(height, w.rows_per_block - first);
    const std::byte* const from =
        w.data + static_cast<std::size_t>(block) * w.block_stride_bytes + first * weights.row_bytes;
    if (w.format.packed() && from != own.next) {
      ask_for(from, std::min(count * weights.row_bytes, kAskedBytes));
    }
    own.next = from + count * weights.row_bytes;
    kernels.multiply({.weights = &weights,
                      .rows = from,
                      .count = count,
                      .packed = packed_.data(),
                      .activations = rows,
                      .y = y + block * w.rows_per_block + first,
                      .ld = ld,
                      .scratch = own.scratch.data()});
  };
  pool_.run(jobs_of_block * w.blocks, multiply,
            rows * w.padded_rows() * w.cols >= kParallelProducts);
}

}  // namespace zi
