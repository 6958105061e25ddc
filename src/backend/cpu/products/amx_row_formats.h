#pragma once

#include "backend/cpu/products/weight_reader.h"
#include "packing/unpack_avx512.h"
#include "packing/unpack_avx512_pairs.h"
#include "packing/unpack_avx512_vbmi.h"

/// How products of few rows make bfloat16s of packed ones, for files that are compiled for AMX. A
/// `Format` has `Rows`: of kRows weight rows the scales of the sixty-four columns at hand, from
/// their first on; `write` makes the values of one row's, `next` goes on to the columns after them.
namespace zi {
namespace {

inline constexpr std::int64_t kPackedColumns = 64;

/// kInt8Weights and kInt4Weights: `Columns` takes scales where they lie.
template <typename Columns>
struct OwnFormat {
  static constexpr std::int64_t kCodeBytes = Columns::kCodeBytes;
  /// Of a row's bytes, for the columns at hand.
  static std::int64_t bytes(const WeightReader&) { return kCodeBytes + Columns::kScales; }
  static bool takes(const WeightReader&) { return true; }

  template <std::int64_t kRows>
  class Rows {
   public:
    Rows(const WeightReader& weights, const std::byte* packed)
        : scales_(packed + static_cast<std::int64_t>(weights.packed_row->scales_at)),
          row_bytes_(weights.row_bytes) {}
    void write(const std::byte* codes, std::int64_t row, std::uint16_t* out) const {
      columns_.write(codes, scales_ + row * row_bytes_, out);
    }
    void next() { scales_ += Columns::kScales; }

   private:
    const Columns columns_;
    const std::byte* scales_;
    std::int64_t row_bytes_;
  };
};

/// Whether each piece of sixty-four columns lies in one group.
inline bool has_long_groups(const WeightReader& weights) {
  const std::int64_t group = weights.packed_row->group;
  return group % kPackedColumns == 0 || group >= weights.cols;
}

/// Other formats of a byte a code, in long groups: `Codes` makes floats of codes.
template <typename Codes>
struct ByteFormat {
  static constexpr std::int64_t kCodeBytes = kPackedColumns;
  static std::int64_t bytes(const WeightReader& weights) { return weights.piece_bytes; }
  static bool takes(const WeightReader& weights) { return has_long_groups(weights); }

  template <std::int64_t kRows>
  class Rows {
   public:
    Rows(const WeightReader& weights, const std::byte* packed)
        : row_(*weights.packed_row), packed_(packed) {
      read_scales();
    }
    void write(const std::byte* codes, std::int64_t row, std::uint16_t* out) const {
      const GroupScales& of = scales_[row / GroupScales::kRows];
      const float scale = of.scale[row % GroupScales::kRows];
      const float zero = of.zero[row % GroupScales::kRows];
      if (ordinary_) {
        write_by(ByteGroupAvx512<Codes, RoundedPairs, true>(scale, zero), codes, out);
      } else {
        write_by(ByteGroupAvx512<Codes, RoundedBits, false>(scale, zero), codes, out);
      }
    }
    void next() {
      column_ += kPackedColumns;
      if (column_ % row_.group == 0 && column_ < row_.cols) read_scales();
    }

   private:
    template <typename Group>
    static void write_by(const Group& group, const std::byte* codes, std::uint16_t* out) {
      group.write(codes, out);
      group.write(codes + kStepColumns, out + kStepColumns);
    }
    void read_scales() {
      const std::int64_t group = column_ / row_.group;
      ordinary_ = true;
      for (std::int64_t i = 0; i < kRows / GroupScales::kRows; ++i) {
        const auto skipped = i * GroupScales::kRows * static_cast<std::int64_t>(row_.bytes);
        scales_[i].read(row_, packed_ + skipped, GroupScales::kRows, group);
        ordinary_ = ordinary_ && scales_[i].ordinary(GroupScales::kRows);
      }
    }

    const PackedRow& row_;
    const std::byte* packed_;
    std::int64_t column_ = 0;
    GroupScales scales_[kRows / GroupScales::kRows];
    bool ordinary_ = true;
  };
};

/// Other formats of int4, in long groups or in groups of 32 columns: a table of its sixteen values
/// for each row and group.
struct Int4Format {
  static constexpr std::int64_t kCodeBytes = Int4Columns64::kCodeBytes;
  static std::int64_t bytes(const WeightReader& weights) {
    return weights.piece_bytes * kPackedColumns / weights.piece_columns;
  }
  static bool takes(const WeightReader& weights) {
    return has_long_groups(weights) || weights.packed_row->group == kStepColumns;
  }

  template <std::int64_t kRows>
  class Rows {
   public:
    Rows(const WeightReader& weights, const std::byte* packed)
        : row_(*weights.packed_row), packed_(packed), second_(row_.group == kStepColumns ? 1 : 0) {
      read_scales();
    }
    void write(const std::byte* codes, std::int64_t row, std::uint16_t* out) const {
      columns_.write(codes, values_[0][row], values_[second_][row], out);
    }
    void next() {
      column_ += kPackedColumns;
      if (column_ % row_.group == 0 && column_ < row_.cols) read_scales();
    }

   private:
    void read_scales() {
      for (int half = 0; half <= second_; ++half) {
        const std::int64_t group = column_ / row_.group + half;
        for (std::int64_t r = 0; r < kRows; r += GroupScales::kRows) {
          GroupScales scales;
          scales.read(row_, packed_ + r * static_cast<std::int64_t>(row_.bytes), GroupScales::kRows,
                      group);
          for (std::int64_t i = 0; i < GroupScales::kRows; ++i) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(values_[half][r + i]),
                               int4_values_of<RoundedBits>(scales.scale[i], scales.zero[i]));
          }
        }
      }
    }

    const Int4Columns64 columns_;
    const PackedRow& row_;
    const std::byte* packed_;
    std::int64_t column_ = 0;
    int second_;  // the table of a piece's second half
    alignas(64) std::uint16_t values_[2][kRows][16];
  };
};

}  // namespace
}  // namespace zi
