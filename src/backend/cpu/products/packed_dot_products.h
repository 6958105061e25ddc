#pragma once

#include "backend/cpu/products/product_kernels.h"
#include "packing/unpack_groups.h"

/// Products of packed weight rows with few rows of activations, for files that are compiled for one
/// instruction set: values are made in registers, multiplied there, and kept nowhere, so that
/// memory is read all the time. `Simd` is a type of the file's own, as in dot_products.h, and the
/// order of sums is that of its products: the bits are those of products with the unpacked values.
namespace zi::dots {

/// Calls with.operator()<rows>(), for up to six.
template <typename With>
void with_rows(std::int64_t rows, const With& with) {
  switch (rows) {
    case 1:
      return with.template operator()<1>();
    case 2:
      return with.template operator()<2>();
    case 3:
      return with.template operator()<3>();
    case 4:
      return with.template operator()<4>();
    case 5:
      return with.template operator()<5>();
    default:
      return with.template operator()<6>();
  }
}

/// Elements from a row of packed activations to the next: a block more than it has, for rows whose
/// length is a power of two would share a few sets of the first cache with each other and with the
/// weight rows that they meet.
template <typename Simd>
constexpr std::int64_t row_elements(std::int64_t padded_cols) {
  return padded_cols + kBlockColumns;
}

/// Columns of a piece of a row, and how far ahead of its use memory is asked for it at least.
inline constexpr std::int64_t kPieceColumns = 64;
inline constexpr std::int64_t kPackedAheadBytes = 8192;

/// With Simd::kInt8Near, our own int8 is asked for into the first cache, and from nearer, for it
/// would not stay there. Formats that need less work a byte wait for memory alone, and lose by it.
template <typename Simd, typename Rows>
constexpr bool near() {
  return Simd::kInt8Near && Rows::kOwn && Rows::kCodeBytes == kBlockColumns;
}

/// Weight rows side by side, in one of our own formats: `Columns` takes scales where they lie.
template <typename Columns, std::int64_t kRows>
class OwnRows {
 public:
  static constexpr std::int64_t kCodeBytes = Columns::kCodeBytes;
  static constexpr bool kOwn = true;
  static bool take(const WeightReader&) { return true; }

  /// `count` rows from `packed` on; the last one again, if they are fewer.
  OwnRows(const WeightReader& weights, const std::byte* packed, std::int64_t count) {
    for (std::int64_t i = 0; i < kRows; ++i) {
      scales_[i] = packed + (i < count ? i : count - 1) * weights.row_bytes +
                   static_cast<std::int64_t>(weights.packed_row->scales_at);
    }
  }
  /// What follows is of the piece that begins at `column`, after the one before.
  void begin(std::int64_t column) { at_ = column / kBlockColumns * Columns::kScales; }
  /// The block's values, of row `row`. `block`: of the piece.
  auto read(const std::byte* codes, std::int64_t row, std::int64_t block) const {
    return columns_.read(codes, scales_[row] + at_ + block * Columns::kScales);
  }

 private:
  const Columns columns_;
  const std::byte* scales_[kRows];
  std::int64_t at_ = 0;
};

/// The same of other formats, in groups of whole pieces: a `Group` is made of a scale and a zero
/// point, an `AnyGroup` where scales are not ordinary.
template <typename Group, typename AnyGroup, std::int64_t kRows>
class GroupRows {
 public:
  static constexpr std::int64_t kCodeBytes = Group::kCodeBytes;
  static constexpr bool kOwn = false;
  static bool take(const WeightReader& weights) {
    const std::int64_t group = weights.packed_row->group;
    return group % kPieceColumns == 0 || group >= weights.cols;
  }

  GroupRows(const WeightReader& weights, const std::byte* packed, std::int64_t count)
      : row_(*weights.packed_row), packed_(packed), count_(count) {}
  void begin(std::int64_t column) {
    if (column != next_) return;
    static_assert(kRows <= GroupScales::kRows);
    GroupScales scales;
    scales.read(row_, packed_, count_, group_++);
    next_ += row_.group;
    ordinary_ = scales.ordinary(count_);
    for (std::int64_t i = 0; i < kRows; ++i) {
      const std::int64_t from = i < count_ ? i : count_ - 1;
      groups_[i] = Group(scales.scale[from], scales.zero[from]);
      if (!ordinary_) any_groups_[i] = AnyGroup(scales.scale[from], scales.zero[from]);
    }
  }
  auto read(const std::byte* codes, std::int64_t row, std::int64_t) const {
    return ordinary_ ? groups_[row].read(codes) : any_groups_[row].read(codes);
  }

 private:
  const PackedRow& row_;
  const std::byte* packed_;
  std::int64_t count_;
  std::int64_t group_ = 0;  // that begins at column next_
  std::int64_t next_ = 0;
  bool ordinary_ = true;
  Group groups_[kRows];
  AnyGroup any_groups_[kRows];
};

/// Simd::kWeightRows packed rows, or those that are left, with kRows rows of activations.
template <typename Simd, typename Rows, int kRows>
void packed_dots(const ProductJob& job, std::int64_t row, const std::byte* ahead) {
  constexpr std::int64_t kWeightRows = Simd::kWeightRows;
  constexpr int kCache = near<Simd, Rows>() ? 3 : 2;
  const WeightReader& weights = *job.weights;
  const std::int64_t step = weights.piece_bytes * kPieceColumns / weights.piece_columns;
  const auto* a = reinterpret_cast<const typename Simd::Packed*>(job.packed);
  const std::int64_t left = job.count - row;
  const std::int64_t here = left < kWeightRows ? left : kWeightRows;
  const std::byte* const packed = job.rows + row * weights.row_bytes;
  Rows rows(weights, packed, here);
  const std::byte* codes[kWeightRows];
  for (std::int64_t i = 0; i < kWeightRows; ++i) {  // one again, if there are few
    codes[i] = packed + (i < here ? i : here - 1) * weights.row_bytes;
  }
  typename Simd::Sum sums[kRows][kWeightRows] = {};
  for (std::int64_t c = 0; c < weights.cols; c += kPieceColumns) {
    rows.begin(c);
    for (std::int64_t i = 0; i < kWeightRows; ++i, ahead += step) {
      __builtin_prefetch(ahead, 0, kCache);
    }
    for (std::int64_t block = 0; block < kPieceColumns / kBlockColumns; ++block) {
      for (std::int64_t i = 0; i < kWeightRows; ++i) {
        Simd::template add<kRows>(sums, i, rows.read(codes[i], i, block),
                                  a + c + block * kBlockColumns, row_elements<Simd>(weights.cols));
        codes[i] += Rows::kCodeBytes;
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float out[kWeightRows];
    Simd::total(sums[r], out);
    for (std::int64_t i = 0; i < here; ++i) job.y[r * job.ld + row + i] = out[i];
  }
}

/// False where the job is none for these products: nothing is done then.
template <typename Simd, typename Rows>
bool multiply_packed_as(const ProductJob& job) {
  const WeightReader& weights = *job.weights;
  if (weights.cols % kPieceColumns != 0 || !Rows::take(weights)) return false;
  const std::int64_t group = Simd::kWeightRows * weights.row_bytes;
  constexpr std::int64_t kAhead = near<Simd, Rows>() ? kPackedAheadBytes / 2 : kPackedAheadBytes;
  const std::int64_t distance = (kAhead / group + 1) * group;
  for (std::int64_t row = 0; row < job.count; row += Simd::kWeightRows) {
    const std::byte* const ahead = job.rows + row * weights.row_bytes + distance;
    const auto with = [&]<int kRows>() {
      if constexpr (kRows <= Simd::kMostRows) packed_dots<Simd, Rows, kRows>(job, row, ahead);
    };
    with_rows(job.activations, with);
  }
  return true;
}

/// The same, of a format's rows that `Simd` knows.
template <typename Simd>
bool multiply_few_packed(const ProductJob& job) {
  if (job.activations > Simd::kMostRows) return false;
  constexpr std::int64_t kRows = Simd::kWeightRows;
  using Int4Group = typename Simd::Int4Group;
  using Float8Group = typename Simd::template ByteGroup<typename Simd::Float8Codes, true>;
  using AnyFloat8Group = typename Simd::template ByteGroup<typename Simd::Float8Codes, false>;
  const auto multiply_int8 = [&]<bool kZeros>() {
    using Codes = typename Simd::template Int8Codes<kZeros>;
    using Int8Group = typename Simd::template ByteGroup<Codes, true>;
    using AnyInt8Group = typename Simd::template ByteGroup<Codes, false>;
    return multiply_packed_as<Simd, GroupRows<Int8Group, AnyInt8Group, kRows>>(job);
  };
  switch (job.weights->packing) {
    case WeightReader::Packing::kInt8:
      return multiply_packed_as<Simd, OwnRows<typename Simd::Int8Columns, kRows>>(job);
    case WeightReader::Packing::kInt4:
      return multiply_packed_as<Simd, OwnRows<typename Simd::Int4Columns, kRows>>(job);
    case WeightReader::Packing::kOtherInt8:
      return job.weights->packed_row->format.zeros ? multiply_int8.template operator()<true>()
                                                   : multiply_int8.template operator()<false>();
    case WeightReader::Packing::kOtherInt4:
      return multiply_packed_as<Simd, GroupRows<Int4Group, Int4Group, kRows>>(job);
    case WeightReader::Packing::kOtherFloat8:
      return multiply_packed_as<Simd, GroupRows<Float8Group, AnyFloat8Group, kRows>>(job);
    case WeightReader::Packing::kNone:
      break;
  }
  return false;
}

}  // namespace zi::dots
