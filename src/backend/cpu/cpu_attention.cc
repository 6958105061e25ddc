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

/// The places of a page's keys.
alignas(64) constexpr float kPageKeys[kLanes] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                 8, 9, 10, 11, 12, 13, 14, 15};

/// The state of a tile's rows; head dimensions are padded to whole vectors with zeros.
struct TileState {
  alignas(64) float q[kTileRows * kMostHeadDim];
  alignas(64) float sum[kTileRows * kMostHeadDim];  // of weights * v
  alignas(64) float k_page[kKvPageTokens * kMostHeadDim];
  alignas(64) float v_page[kKvPageTokens * kMostHeadDim];
  float maximum[kTileRows];
  float total[kTileRows];  // of weights
};

/// What a tile's rows meet: a page whose first position is `first_key`.
struct Page {
  float scale;
  float bias[kKvPageTokens];  // of the keys' positions
  int first_key;
  int position;  // of the tile's first row
  int vectors;   // of a head
};

/// Rows `first` and those after it meet the first `keys` keys of a page. Several at once fill the
/// time in which each alone would wait for its own last result. A row's bits do not depend on how
/// many they are: no sum below has two products of which a compiler could fuse either one, and what
/// is faded is so under a condition, apart from the sums that follow.
template <typename Vector, int kVectors, int kRows>
ZI_INLINE void attend(TileState& state, const Page& page, int first, int keys) {
  const int vectors = kVectors > 0 ? kVectors : page.vectors;
  const std::int64_t padded = vectors * kLanes;
  Vector key;
  simd::load(key, kPageKeys);
  Vector bias;
  simd::load(bias, page.bias);
  Vector hidden;
  simd::fill(hidden, -std::numeric_limits<float>::infinity());
  Vector weight[kRows];
  for (int r = 0; r < kRows; ++r) {
    const float* q = state.q + (first + r) * padded;
    Vector dots[kKvPageTokens];
    for (int k = 0; k < kKvPageTokens; ++k) {
      Vector dot;
      simd::fill(dot, 0);
      for (int i = 0; i < vectors; ++i) {
        Vector a;
        Vector b;
        simd::load(a, q + i * kLanes);
        simd::load(b, state.k_page + k * padded + i * kLanes);
        dot += a * b;
      }
      dots[k] = dot;
    }
    simd::sums(weight[r], dots);
    weight[r] = weight[r] * page.scale + bias;
    // Keys that the row must not see weigh e^-inf = 0; their values are not even read below.
    weight[r] = simd::less(key, static_cast<float>(keys), weight[r], hidden);
  }
  float* const sum = state.sum + first * padded;
  for (int r = 0; r < kRows; ++r) {
    float& maximum = state.maximum[first + r];
    const float best = std::max(maximum, simd::most(weight[r]));
    weight[r] -= best;
    if (best != maximum) {  // else what is there counts as before
      Vector fade;
      simd::fill(fade, maximum - best);  // -inf before the first page
      simd::exp(fade, fade);
      maximum = best;
      state.total[first + r] *= fade.piece[0][0];
      for (int i = 0; i < vectors; ++i) {
        Vector faded;
        simd::load(faded, sum + r * padded + i * kLanes);
        faded *= fade;
        simd::store(faded, sum + r * padded + i * kLanes);
      }
    }
  }
  alignas(64) float weights[kRows][kKvPageTokens];
  for (int r = 0; r < kRows; ++r) simd::exp(weight[r], weight[r]);
  for (int r = 0; r < kRows; ++r) {
    simd::store(weight[r], weights[r]);
    state.total[first + r] += simd::sum(weight[r]);
  }
  // An element's sum takes the keys one after the other, whichever loop is inside.
  constexpr int kTogether = kVectors > 0 ? kVectors : 1;
  for (int i = 0; i < vectors; i += kTogether) {
    Vector acc[kRows][kTogether];
    for (int r = 0; r < kRows; ++r) {
      for (int j = 0; j < kTogether; ++j) {
        simd::load(acc[r][j], sum + r * padded + (i + j) * kLanes);
      }
    }
    for (int k = 0; k < keys; ++k) {
      for (int j = 0; j < kTogether; ++j) {
        Vector v;
        simd::load(v, state.v_page + k * padded + (i + j) * kLanes);
        for (int r = 0; r < kRows; ++r) acc[r][j] += v * weights[r][k];
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int j = 0; j < kTogether; ++j) {
        simd::store(acc[r][j], sum + r * padded + (i + j) * kLanes);
      }
    }
  }
}

template <typename Vector, int kVectors>
ZI_INLINE void attend_each(TileState& state, const Page& page, int first, int last) {
  constexpr int kRows = kVectors == 4 ? 4 : 2;  // whose sums stay in registers
  int r = first;
  // Rows that see a part of the page, and then those that see it all.
  for (; r < last && page.position + r + 1 - page.first_key < kKvPageTokens; ++r) {
    attend<Vector, kVectors, 1>(state, page, r, page.position + r + 1 - page.first_key);
  }
  for (; r + kRows <= last; r += kRows)
    attend<Vector, kVectors, kRows>(state, page, r, kKvPageTokens);
  for (; r < last; ++r) attend<Vector, kVectors, 1>(state, page, r, kKvPageTokens);
}

/// Rows first to last of a tile. Heads of 64 and of 128 elements keep more in registers.
template <typename Vector>
ZI_INLINE void attend_rows_with(TileState& state, const Page& page, int first, int last) {
  switch (page.vectors) {
    case 4:
      return attend_each<Vector, 4>(state, page, first, last);
    case 8:
      return attend_each<Vector, 8>(state, page, first, last);
    default:
      return attend_each<Vector, 0>(state, page, first, last);
  }
}

ZI_SIMD_FUNCTION(attend_rows, (TileState & state, const Page& page, int first, int last),
                 (state, page, first, last))

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
    const std::int64_t part = pool_->dealt(task, tasks);
    const Tile& tile = tiles_[static_cast<std::size_t>((tasks - 1 - part) / heads)];
    const auto head = static_cast<int>(part % heads);
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
    Page met{
        .scale = scale, .bias = {}, .first_key = 0, .position = tile.position, .vectors = vectors};
    const int last = tile.position + tile.rows - 1;
    for (int first_key = 0; first_key <= last; first_key += kKvPageTokens) {
      const std::byte* page =
          kv.data + static_cast<std::size_t>(pages[first_key / kKvPageTokens]) * kv.page_bytes() +
          static_cast<std::size_t>(head / group) * head_bytes;
      const int present = std::min(kKvPageTokens, last - first_key + 1);
      widen(page, kv.dtype, present, head_dim, vectors, state.k_page);
      std::fill(state.k_page + present * padded, state.k_page + kKvPageTokens * padded, 0.0f);
      widen(page + kv.page_bytes() / 2, kv.dtype, present, head_dim, vectors, state.v_page);
      for (int key = 0; key < kKvPageTokens; ++key) {
        met.bias[key] = slope * static_cast<float>(first_key + key);
      }
      met.first_key = first_key;
      attend_rows(state, met, std::max(0, first_key - tile.position), tile.rows);
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
