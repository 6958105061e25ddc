#pragma once

#include "backend/cuda/cuda_attention_kernels.cuh"
#include "backend/cuda/element.cuh"
#include "backend/cuda/product_output.h"
#include "backend/cuda/weight_stream.cuh"

/// Stores of the sums of a product of few rows: prepare() by all threads of a block, before a
/// barrier, then store() or, where takes_fours(), store_four() of columns from a multiple of four
/// on, with the sums of both matrices for tiles that mix them. Columns from `limit` on and those of
/// padding are left out. prepare() may be called before earlier kernels are done: it reads what no
/// kernel writes, the model's vectors and the tables of a RaggedBatch; `column` is one that the
/// thread's block will store.
namespace zi {

/// kRows: of the product at most.
template <typename T, int kRows, typename Output>
class OutputStores;

template <typename T, int kRows>
class OutputStores<T, kRows, SumsOutput> {
 public:
  struct Shared {};

  __device__ OutputStores(const SumsOutput& out, Shared&) : out_(out) {}

  __device__ void prepare(int, int) const {}
  __device__ bool takes_fours() const { return out_.fours; }
  __device__ void store(int row, int column, int limit, float sum) const {
    if (column < limit) *at(row, column) = sum;
  }
  __device__ void store_four(int row, int column, int limit, float4 sum) const {
    if (column < limit) *reinterpret_cast<float4*>(at(row, column)) = sum;
  }

 private:
  __device__ float* at(int row, int column) const {
    return out_.y + static_cast<std::size_t>(row) * out_.ld + column;
  }

  const SumsOutput& out_;
};

template <typename T, int kRows, Activation kActivation>
class OutputStores<T, kRows, ActivateOutput<kActivation>> {
  using Output = ActivateOutput<kActivation>;

 public:
  struct Shared {};

  __device__ OutputStores(const Output& out, Shared&) : out_(out) {}

  __device__ void prepare(int, int column) const {
    if (out_.bias != nullptr && column < out_.cols) fetch_to_l2(out_.bias + column);
  }
  __device__ bool takes_fours() const {
    return out_.cols % 4 == 0 && is_aligned(out_.y, 4 * sizeof(T)) && is_aligned(out_.bias, 16);
  }
  __device__ void store(int row, int column, int, float sum) const {
    if (column >= out_.cols) return;
    const float bias = out_.bias == nullptr ? 0.0f : out_.bias[column];
    *at(row, column) = from_float<T>(activated(kActivation, sum + bias));
  }
  __device__ void store_four(int row, int column, int, float4 sum) const {
    if (column >= out_.cols) return;
    const float4 x = add_four(sum, four_at(out_.bias, column));
    zi::store_four(at(row, column),
                   make_float4(activated(kActivation, x.x), activated(kActivation, x.y),
                               activated(kActivation, x.z), activated(kActivation, x.w)));
  }

 private:
  __device__ T* at(int row, int column) const {
    return static_cast<T*>(out_.y) + static_cast<std::size_t>(row) * out_.cols + column;
  }

  const Output& out_;
};

template <typename T, int kRows, Activation kActivation>
class OutputStores<T, kRows, GateOutput<kActivation>> {
  using Output = GateOutput<kActivation>;

 public:
  struct Shared {};

  __device__ OutputStores(const Output& out, Shared&) : out_(out) {}

  __device__ void prepare(int, int column) const {
    if (column >= out_.cols) return;
    if (out_.bias != nullptr) fetch_to_l2(out_.bias + column);
    if (out_.up_bias != nullptr) fetch_to_l2(out_.up_bias + column);
  }
  __device__ bool takes_fours() const {
    return out_.cols % 4 == 0 && is_aligned(out_.y, 4 * sizeof(T)) && is_aligned(out_.bias, 16) &&
           is_aligned(out_.up_bias, 16);
  }
  __device__ void store(int row, int column, float sum, float up) const {
    if (column >= out_.cols) return;
    const float bias = out_.bias == nullptr ? 0.0f : out_.bias[column];
    const float up_bias = out_.up_bias == nullptr ? 0.0f : out_.up_bias[column];
    *at(row, column) = from_float<T>(activated(kActivation, sum + bias) * (up + up_bias));
  }
  __device__ void store_four(int row, int column, float4 sum, float4 up) const {
    if (column >= out_.cols) return;
    const float4 x = add_four(sum, four_at(out_.bias, column));
    const float4 u = add_four(up, four_at(out_.up_bias, column));
    zi::store_four(
        at(row, column),
        make_float4(activated(kActivation, x.x) * u.x, activated(kActivation, x.y) * u.y,
                    activated(kActivation, x.z) * u.z, activated(kActivation, x.w) * u.w));
  }

 private:
  __device__ T* at(int row, int column) const {
    return static_cast<T*>(out_.y) + static_cast<std::size_t>(row) * out_.cols + column;
  }

  const Output& out_;
};

template <typename T, int kRows>
class OutputStores<T, kRows, QkvOutput> {
 public:
  /// Where a row's first key goes, of head 0.
  struct Shared {
    T* first[kRows];
  };

  __device__ OutputStores(const QkvOutput& out, Shared& shared) : out_(out), shared_(shared) {}

  __device__ void prepare(int rows, int column) const {
    if (out_.bias != nullptr && column < 3 * out_.heads * out_.head_dim) {
      fetch_to_l2(out_.bias + column);
    }
    const auto row = static_cast<int>(threadIdx.x);
    if (row >= rows) return;
    const int position = out_.context[row] - 1;
    const std::int32_t page = out_.block_tables[static_cast<std::int64_t>(row) * out_.max_pages +
                                                position / kKvPageTokens];
    shared_.first[row] =
        reinterpret_cast<T*>(out_.kv + static_cast<std::size_t>(page) * out_.page_bytes) +
        position % kKvPageTokens * out_.head_dim;
  }
  __device__ bool takes_fours() const {
    return out_.head_dim % 4 == 0 && is_aligned(out_.q, 16) && is_aligned(out_.bias, 16) &&
           is_aligned(out_.kv, 4 * sizeof(T));
  }
  __device__ void store(int row, int column, int, float sum) const {
    if (column >= 3 * out_.heads * out_.head_dim) return;
    const float value = out_.bias == nullptr ? sum : sum + out_.bias[column];
    const QkvColumn of(column, out_.head_dim);
    if (of.part == 0) {
      *q_at(row, of) = value;
    } else {
      *kv_at(row, of) = from_float<T>(value);
    }
  }
  __device__ void store_four(int row, int column, int, float4 sum) const {
    if (column >= 3 * out_.heads * out_.head_dim) return;
    const float4 value = add_four(sum, four_at(out_.bias, column));
    const QkvColumn of(column, out_.head_dim);
    if (of.part == 0) {
      *reinterpret_cast<float4*>(q_at(row, of)) = value;
    } else {
      zi::store_four(kv_at(row, of), value);
    }
  }

 private:
  __device__ float* q_at(int row, const QkvColumn& of) const {
    return out_.q + (static_cast<std::int64_t>(row) * out_.heads + of.head) * out_.head_dim +
           of.dim;
  }
  __device__ T* kv_at(int row, const QkvColumn& of) const {
    return shared_.first[row] + place_in_page(of, 0, out_.heads, out_.head_dim);
  }

  const QkvOutput& out_;
  Shared& shared_;
};

}  // namespace zi
