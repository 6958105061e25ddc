#pragma once

#include "backend/cpu/products/packed_dot_products.h"
#include "backend/cpu/products/product_kernels.h"

/// Products as dot products along rows, for files that are compiled for one instruction set; `Simd`
/// is a type of the file's own. Simd::kWeightRows weight rows meet up to Simd::kMostRows rows of
/// activations in registers. The sum of an element has sixteen lanes; of each block b in turn lane
/// i takes columns 32 b + 2 i and 32 b + 2 i + 1, of float16s columns 32 b + i and 32 b + i + 16.
///
/// Where an instruction set multiplies floats, weights become floats on their way into registers,
/// once for each kMostRows rows of activations. Where that costs much, products of kWideFrom rows
/// or more make kWideWeights weight rows floats first, in the order in which activations are
/// packed, once for each block of activations (wide_block), of which kWideRows at a time meet them.
/// The order of a sum is the same. kWideFrom 0: never.
///
/// Up to kAloneRows rows of activations meet one weight row after the other: such products wait for
/// memory, which brings bytes that lie in one line faster than those of rows side by side.
namespace zi::dots {

/// How far ahead of its use memory is asked for a line at least, where weights are used once.
inline constexpr std::int64_t kAheadBytes = 8192;
inline constexpr std::int64_t kLineBytes = 64;
inline constexpr std::int64_t kAskingTurns = 4;

/// What memory is asked for while some weight rows are used: as many bytes after them, line by line
/// in the order in which they lie. Rows side by side would ask for lines of many pages.
struct Ahead {
  const std::byte* from = nullptr;  // null: nothing
  std::int64_t step = 0;            // bytes for each block of columns of one weight row
};

/// Packed activations that a second-level cache keeps: all of them then pass by weight rows in the
/// first one, and else a few at a time by the weight rows of a job.
inline constexpr std::int64_t kKeptBytes = 256 << 10;

template <typename Simd, int kRows>
void dots(const std::uint16_t* const (&w)[Simd::kWeightRows], const typename Simd::Packed* a,
          std::int64_t padded_cols, Ahead ahead, std::int64_t outputs, float* y, std::int64_t ld) {
  typename Simd::Sum sums[kRows][Simd::kWeightRows] = {};
  const auto ask = [&](std::int64_t lines) {
    for (std::int64_t i = 0; i < lines; ++i, ahead.from += ahead.step) {
      __builtin_prefetch(ahead.from, 0, 2);
    }
  };
  const bool asks = ahead.from != nullptr;
  if constexpr (kRows <= Simd::kAloneRows) {
#pragma GCC unroll 4
    for (int i = 0; i < Simd::kWeightRows; ++i) {
      for (std::int64_t c = 0; c < padded_cols; c += kBlockColumns) {
        if (asks) ask(1);
        Simd::template add<kRows>(sums, i, Simd::pairs(w[i] + c), a + c,
                                  row_elements<Simd>(padded_cols));
      }
    }
  } else {
    for (std::int64_t c = 0; c < padded_cols; c += kBlockColumns) {
      if (asks) ask(Simd::kWeightRows);
      Simd::template step<kRows>(sums, w, a, c, row_elements<Simd>(padded_cols));
    }
  }
  float out[kRows][Simd::kWeightRows];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) Simd::total(sums[r], out[r]);
  if (outputs == Simd::kWeightRows) {
    for (int r = 0; r < kRows; ++r) {
      for (std::int64_t i = 0; i < Simd::kWeightRows; ++i) y[r * ld + i] = out[r][i];
    }
  } else {
    for (int r = 0; r < kRows; ++r) {
      for (std::int64_t i = 0; i < outputs; ++i) y[r * ld + i] = out[r][i];
    }
  }
}

template <typename Simd>
std::size_t packed_bytes(std::int64_t activations, std::int64_t padded_cols) {
  return static_cast<std::size_t>(activations * row_elements<Simd>(padded_cols)) *
         sizeof(typename Simd::Packed);
}

template <typename Simd>
bool streams(std::int64_t activations, std::int64_t padded_cols) {
  return packed_bytes<Simd>(activations, padded_cols) <= kKeptBytes;
}

/// Columns of wide weights: they stay in the first cache, and sums wait in memory between them.
inline constexpr std::int64_t kWideColumns = 512;

template <typename Simd>
bool is_wide(std::int64_t activations) {
  return Simd::kWideFrom > 0 && activations >= Simd::kWideFrom;
}

/// Rows of activations that stay in a cache while weight rows pass by.
template <typename Simd>
requires(Simd::kWideFrom > 0) std::int64_t
    wide_block(std::int64_t activations, std::int64_t padded_cols) {
  const std::int64_t row_bytes =
      row_elements<Simd>(padded_cols) * static_cast<std::int64_t>(sizeof(typename Simd::Packed));
  const std::int64_t kept = 2 * kKeptBytes / row_bytes;
  const std::int64_t most =
      kept < Simd::kWideRows ? Simd::kWideRows : kept - kept % Simd::kWideRows;
  return activations < most ? activations : most;
}

template <typename Simd>
std::size_t scratch_bytes(std::int64_t activations, std::int64_t padded_cols, std::int64_t count) {
  if constexpr (Simd::kWideFrom > 0) {
    if (is_wide<Simd>(activations)) {
      return static_cast<std::size_t>(Simd::kWideWeights) *
             (kWideColumns * sizeof(typename Simd::Packed) +
              static_cast<std::size_t>(wide_block<Simd>(activations, padded_cols)) *
                  sizeof(typename Simd::Sum) +
              static_cast<std::size_t>(padded_cols) * sizeof(std::uint16_t));
    }
  }
  const std::int64_t rows = streams<Simd>(activations, padded_cols) ? Simd::kWeightRows : count;
  return static_cast<std::size_t>(rows * padded_cols) * sizeof(std::uint16_t);
}

/// One row at a time.
template <typename Simd>
void pack(const std::uint16_t* a, std::int64_t, std::int64_t cols, std::int64_t panel,
          std::byte* packed) {
  const std::int64_t padded_cols = (cols + kBlockColumns - 1) / kBlockColumns * kBlockColumns;
  auto* to =
      reinterpret_cast<typename Simd::Packed*>(packed) + panel * row_elements<Simd>(padded_cols);
  const std::uint16_t* from = a + panel * cols;
  for (std::int64_t c = 0; c < padded_cols; c += kBlockColumns) {
    if (c + kBlockColumns <= cols) {
      Simd::pack_block(from + c, to + c);
    } else {
      std::uint16_t last[kBlockColumns] = {};
      for (std::int64_t i = c; i < cols; ++i) last[i - c] = from[i];
      Simd::pack_block(last, to + c);
    }
  }
}

/// Some weight rows that lie at a stride.
struct Rows {
  const std::uint16_t* first;
  std::int64_t stride;
  std::int64_t count;
};

/// Simd::kWeightRows of them from `row` on, or those that are left, with `rows` rows of activations
/// from `first` on.
template <typename Simd>
void multiply_block(const ProductJob& job, const Rows& weights, std::int64_t row,
                    std::int64_t first, std::int64_t rows, Ahead ahead, float* y) {
  const std::int64_t padded_cols = job.weights->padded_cols;
  const auto* a = reinterpret_cast<const typename Simd::Packed*>(job.packed) +
                  first * row_elements<Simd>(padded_cols);
  const std::int64_t left = weights.count - row;
  const std::int64_t here = left < Simd::kWeightRows ? left : Simd::kWeightRows;
  const std::uint16_t* w[Simd::kWeightRows];
  for (std::int64_t i = 0; i < Simd::kWeightRows; ++i) {  // one again, if there are few
    w[i] = weights.first + (row + (i < here ? i : here - 1)) * weights.stride;
  }
  float* const to = y + first * job.ld + row;
  const auto with = [&]<int kRows>() {
    if constexpr (kRows <= Simd::kMostRows) {
      dots<Simd, kRows>(w, a, padded_cols, ahead, here, to, job.ld);
    }
  };
  with_rows(rows, with);
}

template <typename Simd>
void multiply_rows(const ProductJob& job, const Rows& weights, bool in_memory, float* y) {
  const std::int64_t turns = (job.activations + Simd::kMostRows - 1) / Simd::kMostRows;
  const std::int64_t most = (job.activations + turns - 1) / turns;
  const auto rows_from = [&](std::int64_t first) {
    return job.activations - first < most ? job.activations - first : most;
  };
  const std::int64_t group = Simd::kWeightRows * weights.stride * 2;  // bytes
  const std::int64_t distance = group < kAheadBytes ? kAheadBytes : group;
  /// A share of what is asked for with these weight rows, in one of the first `of` turns.
  const auto ahead_of = [&](std::int64_t row, std::int64_t turn, std::int64_t of) -> Ahead {
    if (!in_memory || turn >= of) return {};
    const auto* const at = reinterpret_cast<const std::byte*>(weights.first + row * weights.stride);
    return {at + distance + group / of * turn, (kLineBytes + of - 1) / of};
  };
  if (streams<Simd>(job.activations, job.weights->padded_cols)) {
    // While these weights meet activations, memory brings the ones after them.
    const std::int64_t asking = turns < kAskingTurns ? turns : kAskingTurns;
    for (std::int64_t row = 0; row < weights.count; row += Simd::kWeightRows) {
      for (std::int64_t first = 0; first < job.activations; first += most) {
        const Ahead ahead = ahead_of(row, first / most, asking);
        multiply_block<Simd>(job, weights, row, first, rows_from(first), ahead, y);
      }
    }
  } else {
    for (std::int64_t first = 0; first < job.activations; first += most) {
      for (std::int64_t row = 0; row < weights.count; row += Simd::kWeightRows) {
        const Ahead ahead = ahead_of(row, first / most, 1);
        multiply_block<Simd>(job, weights, row, first, rows_from(first), ahead, y);
      }
    }
  }
}

/// Some columns of wide weights, with `rows` rows of activations.
template <typename Simd>
struct WideStep {
  typedef typename Simd::Packed Packed;
  typedef typename Simd::Sum Sum;

  const Packed* weights;  // (kWideWeights, kWideColumns)
  const Packed* a;        // the first of these columns of the first row
  std::int64_t row_elements;
  std::int64_t columns;
  bool first;  // of the columns
  bool last;
  Sum* sums;             // (rows, kWideWeights), between the first and the last
  std::int64_t outputs;  // weight rows that count
  float* y;
  std::int64_t ld;

  template <int kRows>
  void run() const {
    constexpr int kWeights = Simd::kWideWeights;
    Sum own[kRows][kWeights];
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kWeights; ++i) own[r][i] = first ? Sum{} : sums[r * kWeights + i];
    }
    Simd::template add<kRows>(own, weights, kWideColumns, a, row_elements, columns);
    for (int r = 0; r < kRows; ++r) {
      if (!last) {
        for (int i = 0; i < kWeights; ++i) sums[r * kWeights + i] = own[r][i];
        continue;
      }
      float out[kWeights];
      Simd::totals(own[r], out);
      for (std::int64_t i = 0; i < outputs; ++i) y[r * ld + i] = out[i];
    }
  }

  void run(std::int64_t rows) const {
    const auto with = [&]<int kRows>() {
      if constexpr (kRows <= Simd::kWideRows) run<kRows>();
    };
    with_rows(rows, with);
  }
};

template <typename Simd>
void multiply_wide(const ProductJob& job) {
  typedef typename Simd::Packed Packed;
  typedef typename Simd::Sum Sum;
  constexpr std::int64_t kWeights = Simd::kWideWeights;
  const WeightReader& weights = *job.weights;
  const std::int64_t cols = weights.padded_cols;
  const std::int64_t block = wide_block<Simd>(job.activations, cols);
  auto* const wide = reinterpret_cast<Packed*>(job.scratch);
  auto* const sums = reinterpret_cast<Sum*>(wide + kWeights * kWideColumns);
  auto* const unpacked = reinterpret_cast<std::uint16_t*>(sums + block * kWeights);
  const auto* const activations = reinterpret_cast<const Packed*>(job.packed);
  for (std::int64_t from = 0; from < job.activations; from += block) {
    const std::int64_t left_rows = job.activations - from;
    const std::int64_t rows = left_rows < block ? left_rows : block;
    const bool ahead = from == 0 && weights.in_place;  // from memory, for once
    for (std::int64_t row = 0; row < job.count; row += kWeights) {
      const std::int64_t left = job.count - row;
      const std::int64_t here = left < kWeights ? left : kWeights;
      const std::byte* const at = job.rows + row * weights.row_bytes;
      const std::uint16_t* narrow = reinterpret_cast<const std::uint16_t*>(at);
      if (!weights.in_place) {
        PackedPart part{at, here, 0, weights.cols};
        part.ahead += kWeights * weights.row_bytes;
        part.ahead_step = weights.piece_bytes;
        weights.read(part, here, unpacked, cols);
        narrow = unpacked;
      }
      for (std::int64_t c = 0; c < cols; c += kWideColumns) {
        const std::int64_t rest = cols - c;
        const std::int64_t columns = rest < kWideColumns ? rest : kWideColumns;
        for (std::int64_t i = 0; i < kWeights; ++i) {  // one again, if there are few
          const std::uint16_t* const source = narrow + (i < here ? i : here - 1) * cols + c;
          for (std::int64_t b = 0; b < columns; b += kBlockColumns) {
            if (ahead) __builtin_prefetch(source + kWeights * cols + b, 0, 2);
            Simd::pack_block(source + b, wide + i * kWideColumns + b);
          }
        }
        for (std::int64_t r = 0; r < rows; r += Simd::kWideRows) {
          const WideStep<Simd> step{.weights = wide,
                                    .a = activations + (from + r) * row_elements<Simd>(cols) + c,
                                    .row_elements = row_elements<Simd>(cols),
                                    .columns = columns,
                                    .first = c == 0,
                                    .last = c + columns == cols,
                                    .sums = sums + r * kWeights,
                                    .outputs = here,
                                    .y = job.y + (from + r) * job.ld + row,
                                    .ld = job.ld};
          step.run(rows - r < Simd::kWideRows ? rows - r : Simd::kWideRows);
        }
      }
    }
  }
}

template <typename Simd>
void multiply(const ProductJob& job) {
  if constexpr (Simd::kWideFrom > 0) {
    if (is_wide<Simd>(job.activations)) return multiply_wide<Simd>(job);
  }
  if (multiply_few_packed<Simd>(job)) return;
  const WeightReader& weights = *job.weights;
  if (weights.in_place) {
    const auto* rows = reinterpret_cast<const std::uint16_t*>(job.rows);
    multiply_rows<Simd>(job, {rows, weights.cols, job.count}, true, job.y);
    return;
  }
  // Rows that are used once are unpacked some at a time, and multiplied from the first cache.
  const bool once = streams<Simd>(job.activations, weights.padded_cols);
  const std::int64_t step = once ? Simd::kWeightRows : job.count;
  const std::int64_t ahead =
      once ? (kAheadBytes / weights.row_bytes + Simd::kWeightRows) * weights.row_bytes : 0;
  auto* const unpacked = reinterpret_cast<std::uint16_t*>(job.scratch);
  for (std::int64_t row = 0; row < job.count; row += step) {
    const std::int64_t here = job.count - row < step ? job.count - row : step;
    PackedPart part{job.rows + row * weights.row_bytes, here, 0, weights.cols};
    part.ahead += ahead;
    part.ahead_step = ahead == 0 ? 0 : weights.piece_bytes;
    weights.read(part, here, unpacked, weights.padded_cols);
    multiply_rows<Simd>(job, {unpacked, weights.padded_cols, here}, false, job.y + row);
  }
}

template <typename Simd>
constexpr ProductKernels kernels() {
  return {1,          Simd::kWeightRows,   streams<Simd>, packed_bytes<Simd>,
          pack<Simd>, scratch_bytes<Simd>, multiply<Simd>};
}

}  // namespace zi::dots
