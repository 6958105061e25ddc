#include "engine/trial_products.h"

#include <vector>

#include "zero_infer/bytes.h"

namespace zi {

void enqueue_products(Ops& ops, const Model& model, DType compute_dtype, const UnitWeights& weights,
                      bool own_alone, std::int64_t rows, std::byte* memory, Stream& stream) {
  const auto bytes = [rows](std::int64_t columns, DType of) {
    return align_up(static_cast<std::size_t>(rows * columns) * size_of(of), kMatrixAlignment);
  };
  for (const BlockProduct& product : model.products()) {
    std::vector<RowBlockMatrix> matrices;
    for (int i = product.first; i < product.first + product.count; ++i) {
      const RowBlockMatrix matrix = weights.matrix(static_cast<std::size_t>(i));
      matrices.push_back(own_alone ? matrix.own() : matrix);
    }
    const Matrices w(matrices);
    auto* const y = reinterpret_cast<float*>(memory);
    std::byte* const a = memory + bytes(w.padded_rows(), DType::kFloat32);
    if (product.activated) {
      const Activate activate{.activation = model.config().activation,
                              .up = product.count > 1 ? w.first(1) : -1};
      ops.matmul_activate(a, compute_dtype, rows, w, activate, y,
                          a + bytes(w.cols(), compute_dtype), compute_dtype, stream);
    } else {
      ops.matmul(a, compute_dtype, rows, w, y, stream);
    }
  }
}

}  // namespace zi
