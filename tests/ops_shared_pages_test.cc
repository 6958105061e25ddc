#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "ops_inputs.h"

namespace zi {
namespace {

struct SharedPagesTest : OpsInputsTest {};

TEST_P(SharedPagesTest, HoldWhatAnotherSequenceStoresInTheSameBatch) {
  const int heads = 2;
  const int head_dim = 64;
  const std::int64_t hidden = heads * head_dim;
  const std::vector<std::pair<int, int>> lengths = {{40, 40}, {1, 33}, {5, 37}};
  const std::vector<std::vector<std::int32_t>> tables = {{3, 1, 5}, {3, 1, 0}, {3, 1, 4}};
  const auto host_qkv = floats(46 * 3 * hidden);
  for (const DType dtype : kDTypes) {
    const KvLayer empty{nullptr, dtype, heads, head_dim};
    /// The sequences from `first` to `last`, whose rows start at `row`.
    const auto attend = [&](KvLayer& kv, std::size_t first, std::size_t last, int row) {
      const TestBatch b = batch({lengths.begin() + static_cast<std::ptrdiff_t>(first),
                                 lengths.begin() + static_cast<std::ptrdiff_t>(last)},
                                {tables.begin() + static_cast<std::ptrdiff_t>(first),
                                 tables.begin() + static_cast<std::ptrdiff_t>(last)});
      const std::size_t bytes = static_cast<std::size_t>(b.host.tokens * hidden) * sizeof(float);
      const Buffer qkv =
          upload(std::vector<float>(host_qkv.begin() + row * 3 * hidden,
                                    host_qkv.begin() + (row + b.host.tokens) * 3 * hidden));
      Buffer q = device->allocate(bytes);
      return run(bytes, [&](std::byte* out) {
        ops->split_qkv(qkv.as<float>(), 3 * hidden, interleaved(kv, nullptr), b.device, kv,
                       q.as<float>(), *stream);
        ops->attention(q.as<float>(), heads, b.device, kv, nullptr, out, DType::kFloat32, *stream);
      });
    };
    KvLayer kv = empty;
    Buffer apart = upload(std::vector<std::byte>(6 * empty.page_bytes(), std::byte{0xff}));
    kv.data = apart.data();
    std::vector<std::byte> want;
    for (const auto& [sequence, row] : {std::pair{std::size_t{0}, 0}, {1, 40}, {2, 41}}) {
      const auto rows = attend(kv, sequence, sequence + 1, row);
      want.insert(want.end(), rows.begin(), rows.end());
    }
    Buffer together = upload(std::vector<std::byte>(6 * empty.page_bytes(), std::byte{0xff}));
    kv.data = together.data();
    const auto got = attend(kv, 0, 3, 0);
    if (GetParam().exact) {
      EXPECT_EQ(got, want);
      continue;
    }
    const auto values = test::to_doubles(want.data(), DType::kFloat32, 46 * hidden);
    // As in ops_attention_test: q and the weights rounded to the cache's type, of values up to 5.
    const double products = dtype == DType::kFloat32 ? 0 : 4 * rounding(dtype) * 5;
    expect_near(got, DType::kFloat32, values, 1e-5, 2e-5 + products);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, SharedPagesTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace zi
