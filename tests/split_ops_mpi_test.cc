// Products with split matrices, which the device and the host multiply side by side, against those
// of the device alone; on either backend.

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <vector>

#include "engine/split_ops.h"
#include "engine_harness.h"
#include "offload/unit_weights.h"
#include "zero_infer/backend.h"
#include "zero_infer/error.h"

namespace zi::test {
namespace {

/// Matrices of these rows and 416 columns, on the device, and the same in pinned memory.
struct SplitMatrices {
  static constexpr std::int64_t kCols = 416;

  SplitMatrices(Backend& backend, Stream& stream, const WeightFormat& format,
                const std::vector<std::int64_t>& rows) {
    UnitSpec unit{"unit", {}, {}};
    for (const std::int64_t r : rows) unit.matrices.push_back({"m", {r, kCols}});
    layout.emplace(unit, format, 1);
    device = backend.device->allocate(layout->shard_bytes());
    host = backend.device->allocate_pinned(layout->shard_bytes());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const UniformValues values{.key = 7 + i, .stored = DType::kBFloat16};
      backend.ops->fill_uniform_rows(values, 0, rows[i], kCols, format,
                                     device.data() + layout->matrices()[i].offset, stream);
    }
    backend.device->copy(host.data(), device.data(), device.bytes(), stream);
    stream.synchronize();
  }
  Matrices matrices(double share) const {
    std::vector<RowBlockMatrix> all;
    const UnitWeights weights{
        .layout = &*layout, .data = device.data(), .host_share = share, .host = host.data()};
    for (std::size_t i = 0; i < layout->matrices().size(); ++i) all.push_back(weights.matrix(i));
    return Matrices(all);
  }

  std::optional<PartitionLayout> layout;
  Buffer device;
  Buffer host;
};

class SplitOpsTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string model = data_path("bloom-kjv");
    if (const std::string why = missing_backend(model); !why.empty()) GTEST_SKIP() << why;
    backend = make_backend(world(), test_config(model));
    stream = backend.device->make_stream("compute");
  }
  std::shared_ptr<Ops> unowned() { return {std::shared_ptr<Ops>(), backend.ops.get()}; }
  std::vector<float> sums(Ops& ops, const Buffer& a, DType type, std::int64_t rows,
                          const Matrices& w) {
    std::vector<float> out(static_cast<std::size_t>(rows * w.padded_rows()));
    const Buffer y = backend.device->allocate(out.size() * sizeof(float));
    backend.device->zero(y.data(), y.bytes(), *stream);
    ops.matmul(a.data(), type, rows, w, y.as<float>(), *stream);
    backend.device->copy(out.data(), y.data(), y.bytes(), *stream);
    stream->synchronize();
    return out;
  }
  Backend backend;
  std::unique_ptr<Stream> stream;
};

TEST_F(SplitOpsTest, MultiplyInTwoPlacesWhatTheDeviceMultipliesAlone) {
  const auto host = make_host_products(2);
  // Of 300 rows two rounds; of 8192 more than the memory holds at once.
  SplitOps split(unowned(), *backend.device, *host,
                 {.device = std::size_t{1} << 20, .pinned = std::size_t{2} << 20});
  for (const DType type : {DType::kBFloat16, DType::kFloat32}) {
    for (const WeightFormat& format : {WeightFormat(type), kInt8Weights, kInt4Weights}) {
      for (const auto& shape :
           std::vector<std::vector<std::int64_t>>{{32}, {1000}, {320, 96, 96}, {8192}, {16, 500}}) {
        const SplitMatrices m(backend, *stream, format, shape);
        for (const std::int64_t rows : {1, 3, 17, 300}) {
          const auto elements = static_cast<std::size_t>(rows * SplitMatrices::kCols);
          const Buffer a = backend.device->allocate(elements * size_of(type));
          backend.ops->fill_uniform({.key = 3, .stored = DType::kBFloat16}, 0,
                                    rows * SplitMatrices::kCols, a.data(), type, *stream);
          const auto alone = sums(*backend.ops, a, type, rows, m.matrices(0));
          for (const double share : {0.1, 0.5, 1.0}) {
            const auto both = sums(split, a, type, rows, m.matrices(share));
            split.check();
            ASSERT_EQ(both.size(), alone.size());
            for (std::size_t i = 0; i < both.size(); ++i) {
              if (exact_bits()) {
                ASSERT_EQ(both[i], alone[i]) << i;
              } else {
                // Sums of 416 products of up to 1; packed values may be rounded to 8 bits.
                ASSERT_NEAR(both[i], alone[i], type == DType::kFloat32 ? 0.02 : 0.2) << i;
              }
            }
          }
        }
      }
    }
  }
}

TEST_F(SplitOpsTest, RefuseAProductWithoutMemoryAndTellWhatFailedOnTheHost) {
  struct Failing final : HostProducts {
    void run(const void*, DType, std::int64_t, const Matrices&, float*) override {
      throw IoError("the host failed");
    }
  };
  Failing failing;
  const SplitMatrices m(backend, *stream, DType::kBFloat16, {320});
  const Buffer a = backend.device->allocate(SplitMatrices::kCols * 2);
  const Buffer y = backend.device->allocate(320 * sizeof(float));
  SplitOps small(unowned(), *backend.device, failing, {.device = 4096, .pinned = 1024});
  EXPECT_THROW(small.matmul(a.data(), DType::kBFloat16, 1, m.matrices(0.5), y.as<float>(), *stream),
               Error);
  SplitOps split(unowned(), *backend.device, failing, {.device = 4096, .pinned = 4096});
  split.matmul(a.data(), DType::kBFloat16, 1, m.matrices(0.5), y.as<float>(), *stream);
  EXPECT_THROW(split.check(), IoError);
  // The device's part still uses what goes away here. A stream of the CPU backend has failed, too.
  try {
    stream->synchronize();
  } catch (const IoError&) {
  }
}

TEST(HostProducts, NeedAThread) {
  EXPECT_THROW(make_host_products(0), ConfigError);
  EXPECT_EQ(host_product_threads(0, -1), 1) << "the caller's";
  EXPECT_EQ(host_product_threads(5, -1), 5);
}

}  // namespace
}  // namespace zi::test
