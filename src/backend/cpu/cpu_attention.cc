#include "backend/cpu/cpu_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/simd.h"
#include "backend/host/attention_shape.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

constexpr int kTileRows = 32;
/// Keys times columns below which one thread is done before a second has woken up.
constexpr std::int64_t kParallelWork = 1 << 16;
constexpr std::int64_t kLanes = simd::kLanes;
static_assert(kKvPageTokens == kLanes, "the keys of a page are the lanes of its scores");

/// The state of a tile's rows; head dimensions are padded to whole vectors with zeros.
struct TileState {
  alignas(64) float q[kTileRows * kMostHeadDim];
  alignas(64) float sum[kTileRows * kMostHeadDim];  // of weights * v
  alignas(64) float k_page[kKvPageTokens * kMostHeadDim];
  alignas(64) float v_page[kKvPageTokens * kMostHeadDim];
  float maximum[kTileRows];
  float total[kTileRows];  // of weights
};

/// One query row meets the first `keys` keys of a page whose first position is `first_key`.
ZI_SIMD_CLONES void attend_row(const float* q, const float* k_page, const float* v_page, int keys,
                               int vectors, float scale, float slope, int first_key, float* maximum,
                               float* total, float* sum) {
  alignas(64) float weights[kKvPageTokens];
  float best = *maximum;
  for (int key = 0; key < keys; ++key) {
    const float* k = k_page + key * vectors * kLanes;
    simd::Vector dot{};
    for (int i = 0; i < vectors; ++i) {
      simd::Vector a;
      simd::Vector b;
      simd::load(a, q + i * kLanes);
      simd::load(b, k + i * kLanes);
      dot += a * b;
    }
    weights[key] = simd::sum(dot) * scale + slope * static_cast<float>(first_key + key);
    best = std::max(best, weights[key]);
  }
  // Keys that the row must not see weigh e^-inf = 0; their values are not even read below.
  for (int key = keys; key < kKvPageTokens; ++key) {
    weights[key] = -std::numeric_limits<float>::infinity();
  }
  simd::Vector weight;
  simd::load(weight, weights);
  simd::exp(weight, weight - best);
  simd::store(weight, weights);
  simd::Vector fade = simd::Vector{} + (*maximum - best);  // -inf before the first page
  simd::exp(fade, fade);
  *total = *total * fade[0] + simd::sum(weight);
  *maximum = best;
  for (int i = 0; i < vectors; ++i) {
    simd::Vector acc;
    simd::load(acc, sum + i * kLanes);
    acc *= fade;
    for (int key = 0; key < keys; ++key) {
      simd::Vector v;
      simd::load(v, v_page + (key * vectors + i) * kLanes);
      acc += v * weights[key];
    }
    simd::store(acc, sum + i * kLanes);
  }
}

/// Rows (count, head_dim) to float32 rows of whole vectors.
void widen(const std::byte* src, DType dtype, int count, int head_dim, int vectors, float* dst) {
  const std::size_t padded = static_cast<std::size_t>(vectors) * kLanes;
  const auto width = static_cast<std::size_t>(head_dim);
  if (padded == width) {
    simd::to_float(src, dtype, dst, static_cast<std::size_t>(count) * width);
    return;
  }
  for (int i = 0; i < count; ++i) {
    float* row = dst + static_cast<std::size_t>(i) * padded;
    simd::to_float(src + static_cast<std::size_t>(i) * width * size_of(dtype), dtype, row, width);
    std::fill(row + width, row + padded, 0.0f);
  }
}

}  // namespace

void CpuAttention::run(const float* q, int heads, const RaggedBatch& batch, const KvLayer& kv,
                       const float* slopes, void* out, DType out_dtype) {
  tiles_.clear();
  for (int s = 0; s < batch.sequences; ++s) {
    const int begin = batch.row_begin[s];
    const int end = batch.row_begin[s + 1];
    const int first_position = batch.context[s] - (end - begin);
    for (int row = begin; row < end; row += kTileRows) {
      tiles_.push_back({s, row, std::min(kTileRows, end - row), first_position + (row - begin)});
    }
  }
  const int group = heads / kv.heads;  // queries that share keys and values
  const int head_dim = kv.head_dim;
  const int vectors = static_cast<int>(ceil_div(head_dim, kLanes));
  const std::int64_t padded = vectors * kLanes;
  const std::int64_t hidden = static_cast<std::int64_t>(heads) * head_dim;
  const std::size_t head_bytes = static_cast<std::size_t>(kKvPageTokens) *
                                 static_cast<std::size_t>(head_dim) * size_of(kv.dtype);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const auto tasks = static_cast<std::int64_t>(tiles_.size()) * heads;
  std::int64_t keys = 0;  // that the tiles meet: the work
  for (const Tile& tile : tiles_)
    keys += static_cast<std::int64_t>(tile.position + tile.rows) * tile.rows;

  const auto attend = [&](std::int64_t task, int) {
    // The last tiles of a long prompt have most keys: they go first.
    const Tile& tile = tiles_[static_cast<std::size_t>((tasks - 1 - task) / heads)];
    const auto head = static_cast<int>(task % heads);
    const float slope = slopes == nullptr ? 0.0f : slopes[head];
    const std::int32_t* pages =
        batch.block_tables + static_cast<std::int64_t>(tile.sequence) * batch.max_pages;
    TileState state;
    for (int r = 0; r < tile.rows; ++r) {
      widen(reinterpret_cast<const std::byte*>(q + (tile.first_row + r) * hidden + head * head_dim),
            DType::kFloat32, 1, head_dim, vectors, state.q + r * padded);
      std::fill_n(state.sum + r * padded, padded, 0.0f);
      state.maximum[r] = -std::numeric_limits<float>::infinity();
      state.total[r] = 0;
    }
    const int last = tile.position + tile.rows - 1;
    for (int first_key = 0; first_key <= last; first_key += kKvPageTokens) {
      const std::byte* page =
          kv.data + static_cast<std::size_t>(pages[first_key / kKvPageTokens]) * kv.page_bytes() +
          static_cast<std::size_t>(head / group) * head_bytes;
      const int present = std::min(kKvPageTokens, last - first_key + 1);
      widen(page, kv.dtype, present, head_dim, vectors, state.k_page);
      widen(page + kv.page_bytes() / 2, kv.dtype, present, head_dim, vectors, state.v_page);
      for (int r = std::max(0, first_key - tile.position); r < tile.rows; ++r) {
        attend_row(state.q + r * padded, state.k_page, state.v_page,
                   std::min(kKvPageTokens, tile.position + r - first_key + 1), vectors, scale,
                   slope, first_key, &state.maximum[r], &state.total[r], state.sum + r * padded);
      }
    }
    for (int r = 0; r < tile.rows; ++r) {
      float* sum = state.sum + r * padded;
      const float inverse = 1.0f / state.total[r];
      for (int i = 0; i < head_dim; ++i) sum[i] *= inverse;
      const std::int64_t column = (tile.first_row + r) * hidden + head * head_dim;
      simd::from_float(
          sum, static_cast<std::byte*>(out) + static_cast<std::size_t>(column) * size_of(out_dtype),
          out_dtype, static_cast<std::size_t>(head_dim));
    }
  };
  pool_->run(tasks, attend, keys * hidden >= kParallelWork);
}

}  // namespace zi
