#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "ops_inputs.h"

/// Attention beside the reference.
namespace zi {

struct OpsAttentionTest : OpsInputsTest {
  /// What a backend that is not exact may add to the errors of float32: it may round q and the
  /// softmax weights to the KV cache's type for products on matrix units, when a sequence has
  /// several rows or heads share keys. With u = rounding(dtype), each rounded weight is off by u at
  /// most, and so is their mean of values: by u max|v|. Rounding q moves each term of a score by u
  /// at most, either way: the scores here, of standard deviation 2, by u or so, and by 5 u in 1e6
  /// draws. That moves the mean most where two keys share the weight: by a quarter of the
  /// difference of both moves times that of both values, rarely 3 u max|v|.
  double product_rounding(const std::vector<std::pair<int, int>>& lengths, int group, DType dtype,
                          double max_value) const {
    const bool several =
        std::any_of(lengths.begin(), lengths.end(), [](const auto& l) { return l.first > 1; });
    if (GetParam().exact || dtype == DType::kFloat32 || (!several && group == 1)) return 0;
    return 4 * rounding(dtype) * max_value;
  }

  /// Attention over random keys and values, with and without ALiBi, one slope for each head, next
  /// to the reference. Slots that no sequence has written hold NaN.
  void match_the_reference(const std::vector<std::pair<int, int>>& lengths,
                           const std::vector<std::vector<std::int32_t>>& pages,
                           const std::vector<float>& slopes, int head_dim, DType dtype,
                           int group = 1) {
    SCOPED_TRACE(fmt::format("head_dim {} {}, groups of {}", head_dim, name_of(dtype), group));
    const TestBatch b = batch(lengths, pages);
    const std::size_t heads = slopes.size();
    KvLayer kv{nullptr, dtype, static_cast<int>(heads) / group, head_dim};
    std::int32_t last_page = 0;
    for (const auto& list : pages) {
      for (const std::int32_t page : list) last_page = std::max(last_page, page);
    }
    std::vector<std::byte> host_kv((static_cast<std::size_t>(last_page) + 1) * kv.page_bytes(),
                                   std::byte{0xff});
    const std::size_t half = kv.page_bytes() / 2;
    double max_value = 0;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      for (int p = 0; p < lengths[s].second; ++p) {
        const auto page = static_cast<std::size_t>(pages[s][static_cast<std::size_t>(p / 16)]);
        for (std::size_t h = 0; h < heads / static_cast<std::size_t>(group); ++h) {
          const std::size_t at =
              page * kv.page_bytes() + (h * 16 + static_cast<std::size_t>(p % 16)) *
                                           static_cast<std::size_t>(head_dim) * size_of(dtype);
          for (const std::size_t part : {std::size_t{0}, half}) {
            const auto values = floats(head_dim);
            const auto row = as(values, dtype);
            std::memcpy(host_kv.data() + at + part, row.data(), row.size());
            if (part == 0) continue;
            for (const float v : values) max_value = std::max(max_value, std::abs(double{v}));
          }
        }
      }
    }
    const Buffer device_kv = upload(host_kv);
    const auto host_q = floats(b.host.tokens * static_cast<std::int64_t>(heads) * head_dim, 2);
    const Buffer q = upload(host_q);
    const Buffer device_slopes = upload(slopes);
    kv.data = host_kv.data();
    const auto want =
        test::attention(host_q.data(), static_cast<int>(heads), b.host, kv, slopes.data());
    const auto plain = test::attention(host_q.data(), static_cast<int>(heads), b.host, kv, nullptr);
    kv.data = device_kv.data();
    for (const bool alibi : {true, false}) {
      const auto got = run(want.size() * size_of(dtype), [&](std::byte* out) {
        ops->attention(q.as<float>(), static_cast<int>(heads), b.device, kv,
                       alibi ? device_slopes.as<float>() : nullptr, out, dtype, *stream);
      });
      // Scores up to 50 carry 50 * 2^-23 into the exponent: 1e-5 of values of about 1.
      expect_near(got, dtype, alibi ? want : plain, 1e-5,
                  2e-5 + product_rounding(lengths, group, dtype, max_value));
    }
  }
};

}  // namespace zi
