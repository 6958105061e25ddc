#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "ops_fixture.h"
#include "packing/pack_rows.h"
#include "zero_infer/bytes.h"

/// Inputs that the tests of products and of attention share.
namespace zi {

/// A matrix of `blocks` row blocks with a gap between them, in device memory.
struct TestMatrix {
  std::vector<std::byte> bytes;
  Buffer buffer;
  RowBlockMatrix device;
  RowBlockMatrix host;
};

/// Sequences with their pages in shuffled order, on the device.
struct TestBatch {
  std::vector<std::int32_t> row_begin{0};
  std::vector<std::int32_t> context;
  std::vector<std::int32_t> tables;
  Buffer device_row_begin, device_context, device_tables;
  RaggedBatch device;
  RaggedBatch host;
};

struct OpsInputsTest : OpsTest {
  TestMatrix matrix(std::int64_t rows_per_block, int blocks, std::int64_t cols,
                    const WeightFormat& format) {
    TestMatrix m;
    const auto values = format.packed() ? packed_rows(rows_per_block * blocks, cols, format)
                                        : as(floats(rows_per_block * blocks * cols), format.dtype);
    const std::size_t block_bytes =
        static_cast<std::size_t>(rows_per_block) * format.row_bytes(cols);
    const std::size_t stride = block_bytes + 512;
    m.bytes.assign(stride * static_cast<std::size_t>(blocks), std::byte{0xff});  // NaN in the gaps
    for (std::size_t b = 0; b < static_cast<std::size_t>(blocks); ++b) {
      std::memcpy(m.bytes.data() + b * stride, values.data() + b * block_bytes, block_bytes);
    }
    m.buffer = upload(m.bytes);
    m.device = {m.buffer.data(), rows_per_block * blocks, cols, blocks, rows_per_block, stride,
                format};
    m.host = m.device;
    m.host.data = m.bytes.data();
    return m;
  }

  /// Packed bell-shaped values; where there are zero points, which pack_rows makes none of, any
  /// codes and zero points with scales around 1 / 32.
  std::vector<std::byte> packed_rows(std::int64_t rows, std::int64_t cols,
                                     const WeightFormat& format) {
    const std::size_t row_bytes = format.row_bytes(cols);
    std::vector<std::byte> bytes(static_cast<std::size_t>(rows) * row_bytes);
    if (!format.zeros) {
      const auto packed = pack_rows(floats(rows * cols).data(), rows, cols, format, bytes.data());
      EXPECT_EQ(packed, rows);
      return bytes;
    }
    const auto groups = static_cast<std::size_t>(format.groups(cols));
    for (std::size_t row = 0; row < bytes.size(); row += row_bytes) {
      for (std::int64_t c = 0; c < cols; ++c) {
        test::set_code(bytes.data() + row, format, c, static_cast<unsigned>(random()));
      }
      for (std::size_t g = 0; g < groups; ++g) {
        const float sign = random() % 2 == 0 ? 1.0f : -1.0f;
        const float scale = sign * std::ldexp(1 + static_cast<float>(random() % 8) / 8, -5);
        const DType type = format.scale == ScaleType::kFloat32   ? DType::kFloat32
                           : format.scale == ScaleType::kFloat16 ? DType::kFloat16
                                                                 : DType::kBFloat16;
        std::byte* const at = bytes.data() + row + format.scales_at(cols) + g * size_of(type);
        convert(&scale, DType::kFloat32, at, type, 1);
        bytes[row + format.zeros_at(cols) + g] = static_cast<std::byte>(
            random() % (format.kind == WeightFormat::Kind::kInt4 ? 129 : 256));
      }
    }
    return bytes;
  }

  /// `lengths[s]` = {rows in this pass, keys after it}; `pages[s]` the pages of each sequence.
  TestBatch batch(const std::vector<std::pair<int, int>>& lengths,
                  const std::vector<std::vector<std::int32_t>>& pages) {
    TestBatch b;
    std::size_t most = 1;
    for (const auto& list : pages) most = std::max(most, list.size());
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      b.row_begin.push_back(b.row_begin.back() + lengths[s].first);
      b.context.push_back(lengths[s].second);
      auto list = pages[s];
      list.resize(most, -1);
      b.tables.insert(b.tables.end(), list.begin(), list.end());
    }
    b.device_row_begin = upload(b.row_begin);
    b.device_context = upload(b.context);
    b.device_tables = upload(b.tables);
    b.host = {
        b.row_begin.back(), static_cast<int>(lengths.size()), b.row_begin.data(), b.context.data(),
        b.tables.data(),    static_cast<int>(most),           b.row_begin,        b.context};
    b.device = b.host;
    b.device.row_begin = b.device_row_begin.as<std::int32_t>();
    b.device.context = b.device_context.as<std::int32_t>();
    b.device.block_tables = b.device_tables.as<std::int32_t>();
    return b;
  }

  /// Pages for each sequence in shuffled order, and one more that none of them has.
  std::vector<std::vector<std::int32_t>> shuffled_pages(
      const std::vector<std::pair<int, int>>& lengths) {
    std::vector<std::vector<std::int32_t>> pages;
    std::int32_t count = 0;
    for (const auto& length : lengths) {
      pages.emplace_back(static_cast<std::size_t>(ceil_div(length.second, kKvPageTokens)));
      count += static_cast<std::int32_t>(pages.back().size());
    }
    std::vector<std::int32_t> free(static_cast<std::size_t>(count) + 1);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), random);
    for (auto& list : pages) {
      for (std::int32_t& page : list) {
        page = free.back();
        free.pop_back();
      }
    }
    return pages;
  }
};

/// The split of a product whose columns are (heads, 3, head_dim), with its biases or null.
inline QkvSplit interleaved(const KvLayer& kv, const float* bias) {
  const std::int64_t d = kv.head_dim;
  const auto part = [&](std::int64_t first) {
    return HeadColumns{first, 3 * d, bias == nullptr ? nullptr : bias + first};
  };
  return {.q = part(0), .k = part(d), .v = part(2 * d), .heads = kv.heads};
}

}  // namespace zi
