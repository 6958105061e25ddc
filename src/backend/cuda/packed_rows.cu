#include <algorithm>

#include "backend/cuda/cuda_support.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/packed_rows.h"
#include "packing/group_codes.h"
#include "zero_infer/error.h"

/// Compiled without fused multiply-adds: the same operations as on the host give the same bytes.
namespace zi {
namespace {

using Kind = WeightFormat::Kind;

constexpr int kPackedThreads = 128;
constexpr int kUnitCols = 16;    // of a thread that unpacks; no group ends inside
constexpr int kPackedUnit = 32;  // of a thread that packs: whole blocks and whole groups
constexpr std::int64_t kMostRowsAtOnce = 65535;

__device__ float scale_at(const PackedRow& row, const std::byte* packed, int group) {
  const std::byte* const at = packed + row.scales_at + group * row.scale_bytes;
  switch (row.format.scale) {
    case ScaleType::kFloat32:
      return *reinterpret_cast<const float*>(at);
    case ScaleType::kFloat16:
      return __half2float(*reinterpret_cast<const __half*>(at));
    case ScaleType::kBFloat16:
      return __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(at));
    case ScaleType::kFloat8:
      break;
  }
  return float8_to_float(static_cast<std::uint32_t>(*at), row.format.kind);
}

__device__ float zero_at(const PackedRow& row, const std::byte* packed, int group) {
  if (row.format.zeros) {
    return zero_point_of(static_cast<std::uint8_t>(packed[row.zeros_at + group]), row.format.kind);
  }
  return row.format.kind == Kind::kInt4 ? kInt4Middle : 0.0f;
}

/// The values of kUnitCols columns from `first` on.
__device__ void unpack_unit(const PackedRow& row, const std::byte* packed, int first,
                            float (&values)[kUnitCols]) {
  const int group = first / static_cast<int>(row.group);
  const float scale = scale_at(row, packed, group);
  const float zero = zero_at(row, packed, group);
  const bool int4 = row.format.kind == Kind::kInt4;
  const bool float8 = row.format.kind == Kind::kFloat8;
  const uint4 block =
      *reinterpret_cast<const uint4*>(packed + (int4 ? first / 32 : first / 16) * 16);
  const std::uint32_t words[4] = {block.x, block.y, block.z, block.w};
  const bool upper = first / kUnitCols % 2 != 0;  // half of a block of int4
#pragma unroll
  for (int c = 0; c < kUnitCols; ++c) {
    const std::uint32_t four_bits =
        (upper ? words[2 + c / 8] : words[c / 8]) >> (c % 8 / 2 * 4 + c % 2 * 16) & 15u;
    const std::uint32_t byte = words[c / 4] >> (8 * (c % 4)) & 0xffu;
    const float code = int4     ? static_cast<float>(four_bits)
                       : float8 ? e4m3_to_float(byte)
                                : static_cast<float>(static_cast<std::int8_t>(byte));
    values[c] = (code - zero) * scale;
  }
}

/// (units of columns, rows): a thread a unit. With `rows`, row i of the result is of row rows[i].
template <typename T>
__global__ void unpack_kernel(const __grid_constant__ PackedRow row, const std::byte* packed,
                              const std::int32_t* rows, std::int64_t count, T* out) {
  wait_for_previous();
  const auto first = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) * kUnitCols);
  if (first >= row.cols) return;
  for (std::int64_t i = blockIdx.y; i < count; i += gridDim.y) {
    const std::int64_t from = rows == nullptr ? i : rows[i];
    float values[kUnitCols];
    unpack_unit(row, packed + from * static_cast<std::int64_t>(row.bytes), first, values);
    T* const to = out + i * row.cols + first;
    if (row.cols % 8 == 0 && first + kUnitCols <= row.cols) {
      alignas(16) T narrow[kUnitCols];
#pragma unroll
      for (int c = 0; c < kUnitCols; ++c) narrow[c] = from_float<T>(values[c]);
#pragma unroll
      for (int c = 0; c < kUnitCols * static_cast<int>(sizeof(T)) / 16; ++c) {
        reinterpret_cast<uint4*>(to)[c] = reinterpret_cast<const uint4*>(narrow)[c];
      }
    } else {
      for (int c = 0; c < kUnitCols && first + c < row.cols; ++c) to[c] = from_float<T>(values[c]);
    }
  }
}

template <typename T>
void unpack(const std::byte* packed, const std::int32_t* rows, std::int64_t count,
            std::int64_t cols, const WeightFormat& format, T* out, cudaStream_t stream) {
  if (count == 0) return;
  const std::int64_t units = (cols + kUnitCols - 1) / kUnitCols;
  const dim3 grid(static_cast<unsigned>((units + kPackedThreads - 1) / kPackedThreads),
                  static_cast<unsigned>(std::min(count, kMostRowsAtOnce)));
  launch_early(unpack_kernel<T>, grid, kPackedThreads, 0, stream, PackedRow(format, cols), packed,
               rows, count, out);
}

/// The byte of the scale with the least sum of squared errors, as best_float8 in pack_rows.cc. The
/// values have one that is large enough.
template <Kind kKind, int kCount>
__device__ std::int32_t best_float8(const float* values) {
  constexpr Codes kCodes = codes_of(kKind);
  float largest = 0;
  for (int c = 0; c < kCount; ++c) largest = fmaxf(fabsf(values[c]), largest);
  const std::int32_t first = float8_below(largest * (1 / kCodes.most), kKind);
  const std::int32_t last = min(float8_below(largest * (1 / kCodes.least), kKind), kLastFloat8);
  std::int32_t best = first;
  float least = INFINITY;
  for (std::int32_t byte = first; byte <= last; ++byte) {
    for (std::int32_t sign = 0; sign < float8_signs(kKind); ++sign) {
      const float scale = float8_to_float(static_cast<std::uint32_t>(byte + 128 * sign), kKind);
      const float inverse = 1 / scale;
      float errors = 0;
      for (int c = 0; c < kCount; ++c) {
        const float error = values[c] - code_of(values[c], inverse, kCodes) * scale;
        errors += error * error;
      }
      if (errors < least) {
        least = errors;
        best = byte + 128 * sign;
      }
    }
  }
  return best;
}

/// (units of kPackedUnit columns, rows): a thread a unit.
template <Kind kKind, typename Stored>
__global__ void fill_packed_kernel(const __grid_constant__ PackedRow row, std::uint64_t key,
                                   float step, std::int64_t first_row, std::int64_t count,
                                   std::byte* out) {
  constexpr int kGroup = kKind == Kind::kInt4 ? kInt4Weights.group : kInt8Weights.group;
  constexpr Codes kCodes = codes_of(kKind);
  const auto unit = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int first = unit * kPackedUnit;
  if (first >= row.cols) return;
  for (std::int64_t i = blockIdx.y; i < count; i += gridDim.y) {
    std::byte* const to = out + i * static_cast<std::int64_t>(row.bytes);
    const std::int64_t start = (first_row + i) * row.cols + first;
    float values[kPackedUnit];
    for (int c = 0; c < kPackedUnit; ++c) {
      const std::int64_t at = start + c;
      const std::uint64_t bits =
          mix64(key ^ static_cast<std::uint64_t>(at / UniformValues::kPerDraw));
      const float value =
          UniformValues::value(bits, static_cast<int>(at % UniformValues::kPerDraw), step);
      values[c] = first + c < row.cols ? to_float(from_float<Stored>(value)) : 0.0f;
    }
    float codes[kPackedUnit];
    for (int g = 0; g < kPackedUnit / kGroup; ++g) {
      if (first + g * kGroup >= row.cols) {
        for (int c = 0; c < kGroup; ++c) codes[g * kGroup + c] = 0;
        continue;
      }
      const std::int32_t byte = best_float8<kKind, kGroup>(values + g * kGroup);
      to[row.scales_at + first / kGroup + g] = static_cast<std::byte>(byte);
      const float inverse = 1 / float8_to_float(static_cast<std::uint32_t>(byte), kKind);
      for (int c = 0; c < kGroup; ++c) {
        codes[g * kGroup + c] = code_of(values[g * kGroup + c], inverse, kCodes);
      }
    }
    std::uint32_t words[kPackedUnit / 4] = {};
    for (int c = 0; c < kPackedUnit; ++c) {
      const int code = static_cast<int>(codes[c]);
      if constexpr (kKind == Kind::kInt4) {
        words[c / 8] |= static_cast<std::uint32_t>(code + 8) << (c % 8 / 2 * 4 + c % 2 * 16);
      } else {
        words[c / 4] |= (static_cast<std::uint32_t>(code) & 0xffu) << (8 * (c % 4));
      }
    }
    constexpr int kBlocks = kKind == Kind::kInt4 ? 1 : 2;
    for (int b = 0; b < kBlocks; ++b) {
      if (first + b * (kPackedUnit / kBlocks) >= row.cols) continue;
      reinterpret_cast<uint4*>(to)[unit * kBlocks + b] =
          make_uint4(words[4 * b], words[4 * b + 1], words[4 * b + 2], words[4 * b + 3]);
    }
    // Behind the scales: zeros up to the row's end.
    const int groups = static_cast<int>(row.groups);
    if (first + kPackedUnit >= row.cols) {
      for (auto at = row.scales_at + groups; at < row.bytes; ++at) to[at] = std::byte{0};
    }
  }
}

}  // namespace

void cuda_unpack_rows(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                      const WeightFormat& format, DType to, void* out, cudaStream_t stream) {
  switch (to) {
    case DType::kFloat32:
      return unpack(packed, nullptr, rows, cols, format, static_cast<float*>(out), stream);
    case DType::kFloat16:
      return unpack(packed, nullptr, rows, cols, format, static_cast<__half*>(out), stream);
    case DType::kBFloat16:
      return unpack(packed, nullptr, rows, cols, format, static_cast<__nv_bfloat16*>(out), stream);
  }
}

void cuda_gather_packed_rows(const std::byte* packed, const WeightFormat& format,
                             const std::int32_t* rows, std::int64_t count, std::int64_t cols,
                             float* out, cudaStream_t stream) {
  unpack(packed, rows, count, cols, format, out, stream);
}

void cuda_fill_packed_rows(const UniformValues& values, std::int64_t first, std::int64_t rows,
                           std::int64_t cols, const WeightFormat& format, std::byte* out,
                           cudaStream_t stream) {
  if (format != kInt8Weights && format != kInt4Weights) {
    throw Error("random weights are not made on a GPU as " + describe(format));
  }
  if (rows == 0) return;
  const std::int64_t units = (cols + kPackedUnit - 1) / kPackedUnit;
  const dim3 grid(static_cast<unsigned>((units + kPackedThreads - 1) / kPackedThreads),
                  static_cast<unsigned>(std::min(rows, kMostRowsAtOnce)));
  const PackedRow row(format, cols);
  const auto fill = [&]<typename Stored>(Stored) {
    if (format.kind == Kind::kInt4) {
      fill_packed_kernel<Kind::kInt4, Stored>
          <<<grid, kPackedThreads, 0, stream>>>(row, values.key, values.step(), first, rows, out);
    } else {
      fill_packed_kernel<Kind::kInt8, Stored>
          <<<grid, kPackedThreads, 0, stream>>>(row, values.key, values.step(), first, rows, out);
    }
    ZI_CUDA_LAUNCHED();
  };
  switch (values.stored) {
    case DType::kFloat32:
      return fill(float{});
    case DType::kFloat16:
      return fill(__half{});
    case DType::kBFloat16:
      return fill(__nv_bfloat16{});
  }
}

}  // namespace zi
