#pragma once

#include "backend/cuda/element.cuh"
#include "backend/cuda/product_output.h"
#include "backend/cuda/weight_stream.cuh"

/// Stores of the sums of a product of few rows: prepare() by all threads of a block, before a
/// barrier, then store() or, where takes_fours(), store_four() of columns from a multiple of four
/// on. Columns of padding are left out. prepare() may be called before earlier kernels are done: it
/// reads what no kernel writes, the model's vectors and the tables of a RaggedBatch; `column` is
/// one that the thread's block will store.
namespace zi {

__device__ inline bool is_aligned_to(const void* p, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
}

template <typename T>
__device__ inline void store_converted(T* to, float4 v) {
  *reinterpret_cast<Four<T>*>(to) = {
      {from_float<T>(v.x), from_float<T>(v.y), from_float<T>(v.z), from_float<T>(v.w)}};
}

/// kRows: of the product at most.
template <typename T, int kRows, typename Output>
class OutputStores;

template <typename T, int kRows>
class OutputStores<T, kRows, SumsOutput> {
 public:
  struct Shared {};

  __device__ OutputStores(const SumsOutput& out, Shared&) : out_(out) {}

  __device__ void prepare(int, int) const {}
  __device__ bool takes_fours() const { return out_.ld % 4 == 0 && is_aligned_to(out_.y, 16); }
  __device__ void store(int row, int column, float sum) const {
    if (column < out_.ld) *at(row, column) = sum;
  }
  __device__ void store_four(int row, int column, float4 sum) const {
    if (column < out_.ld) *reinterpret_cast<float4*>(at(row, column)) = sum;
  }

 private:
  __device__ float* at(int row, int column) const {
    return out_.y + static_cast<std::size_t>(row) * out_.ld + column;
  }

  const SumsOutput& out_;
};

template <typename T, int kRows>
class OutputStores<T, kRows, GeluOutput> {
 public:
  struct Shared {};

  __device__ OutputStores(const GeluOutput& out, Shared&) : out_(out) {}

  __device__ void prepare(int, int column) const {
    if (column < out_.cols) fetch_to_l2(out_.bias + column);
  }
  __device__ bool takes_fours() const {
    return out_.cols % 4 == 0 && is_aligned_to(out_.y, 4 * sizeof(T)) &&
           is_aligned_to(out_.bias, 16);
  }
  __device__ void store(int row, int column, float sum) const {
    if (column < out_.cols) *at(row, column) = from_float<T>(gelu(sum + out_.bias[column]));
  }
  __device__ void store_four(int row, int column, float4 sum) const {
    if (column >= out_.cols) return;
    const float4 bias = *reinterpret_cast<const float4*>(out_.bias + column);
    store_converted(at(row, column), make_float4(gelu(sum.x + bias.x), gelu(sum.y + bias.y),
                                                 gelu(sum.z + bias.z), gelu(sum.w + bias.w)));
  }

 private:
  __device__ T* at(int row, int column) const {
    return static_cast<T*>(out_.y) + static_cast<std::size_t>(row) * out_.cols + column;
  }

  const GeluOutput& out_;
};

template <typename T, int kRows>
class OutputStores<T, kRows, QkvOutput> {
 public:
  /// Where a row's keys of head 0 go.
  struct Shared {
    T* keys[kRows];
  };

  __device__ OutputStores(const QkvOutput& out, Shared& shared) : out_(out), shared_(shared) {}

  __device__ void prepare(int rows, int column) const {
    if (column < 3 * out_.heads * out_.head_dim) fetch_to_l2(out_.bias + column);
    const auto row = static_cast<int>(threadIdx.x);
    if (row >= rows) return;
    const int position = out_.context[row] - 1;
    const std::int32_t page = out_.block_tables[static_cast<std::int64_t>(row) * out_.max_pages +
                                                position / kKvPageTokens];
    shared_.keys[row] =
        reinterpret_cast<T*>(out_.kv + static_cast<std::size_t>(page) * out_.page_bytes) +
        position % kKvPageTokens * out_.head_dim;
  }
  __device__ bool takes_fours() const {
    return out_.head_dim % 4 == 0 && is_aligned_to(out_.q, 16) && is_aligned_to(out_.bias, 16) &&
           is_aligned_to(out_.kv, 4 * sizeof(T));
  }
  __device__ void store(int row, int column, float sum) const {
    if (column >= 3 * out_.heads * out_.head_dim) return;
    const float value = sum + out_.bias[column];
    const Place place(out_, column);
    if (place.kind == 0) {
      *q_at(row, place) = value;
    } else {
      *kv_at(row, place) = from_float<T>(value);
    }
  }
  __device__ void store_four(int row, int column, float4 sum) const {
    if (column >= 3 * out_.heads * out_.head_dim) return;
    const float4 bias = *reinterpret_cast<const float4*>(out_.bias + column);
    const float4 value =
        make_float4(sum.x + bias.x, sum.y + bias.y, sum.z + bias.z, sum.w + bias.w);
    const Place place(out_, column);
    if (place.kind == 0) {
      *reinterpret_cast<float4*>(q_at(row, place)) = value;
    } else {
      store_converted(kv_at(row, place), value);
    }
  }

 private:
  /// Columns are (heads, 3, head_dim).
  struct Place {
    __device__ Place(const QkvOutput& out, int column) {
      const int third = column / out.head_dim;
      dim = column - third * out.head_dim;
      head = third / 3;
      kind = third - 3 * head;
    }
    int kind, head, dim;
  };

  __device__ float* q_at(int row, const Place& place) const {
    return out_.q + (static_cast<std::int64_t>(row) * out_.heads + place.head) * out_.head_dim +
           place.dim;
  }
  __device__ T* kv_at(int row, const Place& place) const {
    const int heads_before = place.head + (place.kind == 2 ? out_.heads : 0);
    return shared_.keys[row] +
           static_cast<std::int64_t>(heads_before) * kKvPageTokens * out_.head_dim + place.dim;
  }

  const QkvOutput& out_;
  Shared& shared_;
};

}  // namespace zi
