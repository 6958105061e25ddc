// Products with matrices that stay on the ranks that mpirun started, against the same products with
// the whole matrices on each of them.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "engine/backend_choice.h"
#include "engine/exchange_ops.h"
#include "engine/row_exchange.h"
#include "mpi_world.h"
#include "packing/pack_rows.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi::test {
namespace {

std::vector<float> random_values(std::int64_t count, std::uint64_t seed) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(random_bits(seed, 5, i) % 2001) / 1000 - 1;
  }
  return values;
}

/// A unit of some matrices, whole on every rank and as this rank's shard.
struct SharedUnit {
  SharedUnit(Device& device, Stream& stream, const std::vector<std::int64_t>& rows,
             std::int64_t cols, const WeightFormat& format)
      : layout(spec_of(rows, cols), format, world().size()),
        whole(device.allocate(layout.gathered_bytes())),
        shard(device.allocate(layout.shard_bytes())) {
    std::vector<std::byte> bytes(layout.gathered_bytes());
    for (std::size_t m = 0; m < rows.size(); ++m) {
      const std::vector<float> values = random_values(rows[m] * cols, 10 + m);
      for (int rank = 0; rank < world().size(); ++rank) {
        const auto own = layout.rows_of(m, rank);
        std::byte* const to = bytes.data() + static_cast<std::size_t>(rank) * layout.shard_bytes() +
                              layout.matrices()[m].offset;
        const float* const from = values.data() + own.first * cols;
        if (format.packed()) {
          EXPECT_EQ(pack_rows(from, own.count, cols, format, to), own.count);
        } else {
          convert(from, DType::kFloat32, to, format.dtype,
                  static_cast<std::size_t>(own.count * cols));
        }
      }
    }
    device.copy(whole.data(), bytes.data(), bytes.size(), stream);
    device.copy(shard.data(),
                bytes.data() + static_cast<std::size_t>(world().rank()) * layout.shard_bytes(),
                layout.shard_bytes(), stream);
    stream.synchronize();
  }
  static UnitSpec spec_of(const std::vector<std::int64_t>& rows, std::int64_t cols) {
    UnitSpec unit{"unit", {}, {}};
    for (const std::int64_t r : rows) unit.matrices.push_back({"w", {r, cols}});
    return unit;
  }
  Matrices matrices(bool stay) const {
    std::vector<RowBlockMatrix> all;
    for (std::size_t m = 0; m < layout.matrices().size(); ++m) {
      all.push_back(layout.gathered(m, stay ? shard.data() : whole.data()));
      if (stay) all.back().only_block = world().rank();
    }
    return Matrices(all);
  }

  PartitionLayout layout;
  Buffer whole;
  Buffer shard;
};

class RowExchangeTest : public testing::Test {
 protected:
  static constexpr std::int64_t kMost = 11;

  void SetUp() override {
    RunConfig config;
    config.backend = wants_cuda() ? BackendChoice::kCuda : BackendChoice::kCpu;
    try {
      backend_ = make_backend(world(), config);
    } catch (const PeerError&) {
      GTEST_SKIP() << "another rank cannot have the backend";
    } catch (const ConfigError& error) {
      GTEST_SKIP() << error.what();
    }
    if (world().size() == 1) GTEST_SKIP() << "one rank exchanges nothing";
    compute_ = backend_.device->make_stream("compute");
    exchange_ = backend_.device->make_stream("gather");
  }

  /// An exchange with so much memory, for products of up to kMost rows of each rank: by
  /// collective calls, or by the memory of peers.
  struct Exchange {
    Exchange(Backend& backend, const RowExchange::Room& room, Stream& stream,
             PeerExchange* by = nullptr)
        : memory(backend.device->allocate(by == nullptr ? room.bytes() : 0)),
          rows(*backend.device, *backend.ops, *backend.communicator, by, world().size(),
               memory.data(), room, stream),
          ops(std::shared_ptr<Ops>(std::shared_ptr<Ops>(), backend.ops.get()), rows) {
      ops.begin_pass(kMost);
    }
    Buffer memory;
    RowExchange rows;
    ExchangeOps ops;
  };

  /// Collective. Both ways, the second where the devices have it.
  std::vector<PeerExchange*> ways(const RowExchange::Room& room) {
    peers_ = backend_.communicator->make_peer_exchange(*backend_.device, room.bytes());
    if (peers_ == nullptr) return {nullptr};
    return {nullptr, peers_.get()};
  }

  /// Rows of this rank: none on the last one, the most on the first.
  static std::int64_t own_rows() {
    const std::int64_t last = world().size() - 1;
    return kMost * (last - world().rank()) / last;
  }

  Buffer upload(const std::vector<float>& values, DType type) {
    Buffer floats = backend_.device->allocate(values.size() * sizeof(float));
    Buffer out = backend_.device->allocate(values.size() * size_of(type));
    backend_.device->copy(floats.data(), values.data(), floats.bytes(), *compute_);
    backend_.ops->convert(floats.data(), DType::kFloat32, out.data(), type,
                          static_cast<std::int64_t>(values.size()), *compute_);
    compute_->synchronize();
    return out;
  }
  std::vector<float> download(const Buffer& from, DType type, std::int64_t count) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(count) * size_of(type));
    std::vector<float> values(static_cast<std::size_t>(count));
    backend_.device->copy(bytes.data(), from.data(), bytes.size(), *compute_);
    compute_->synchronize();
    convert(bytes.data(), type, values.data(), DType::kFloat32, values.size());
    return values;
  }
  static void expect_equal(const std::vector<float>& got, const std::vector<float>& want,
                           DType type, const std::string& what) {
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      if (wants_cuda()) {  // sums in another order, then perhaps rounded
        const float scale = type == DType::kFloat32 ? 1e-4f : 2e-2f;
        ASSERT_NEAR(got[i], want[i], scale * (1 + std::abs(want[i]))) << what << ", value " << i;
      } else {
        ASSERT_EQ(got[i], want[i]) << what << ", value " << i;
      }
    }
  }

  Backend backend_;
  std::unique_ptr<Stream> compute_;
  std::unique_ptr<Stream> exchange_;
  std::unique_ptr<PeerExchange> peers_;
};

const WeightFormat kFormats[] = {DType::kFloat32, DType::kBFloat16, kInt8Weights};

/// Memory for rounds of one row, of some, and of all.
std::vector<RowExchange::Room> rooms(const RowExchange::Row& row, std::int64_t most) {
  std::vector<RowExchange::Room> all;
  for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{4}, most}) {
    all.push_back(RowExchange::room(row, rows, world().size()));
  }
  return all;
}

TEST_F(RowExchangeTest, GivesTheBitsOfProductsWithWholeMatricesInRoundsOfAnyNumberOfRows) {
  const std::int64_t cols = 96;
  for (const WeightFormat& format : kFormats) {
    // One matrix, and three of which some ranks have fewer rows or none.
    for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{48}, {40, 7, 1}}) {
      const DType type = DType::kBFloat16;
      const SharedUnit unit(*backend_.device, *compute_, shape, cols, format);
      const Matrices w = unit.matrices(false);
      const Buffer a =
          upload(random_values(kMost * cols, 3 + static_cast<std::uint64_t>(world().rank())), type);
      Buffer want = backend_.device->allocate(static_cast<std::size_t>(kMost * w.padded_rows()) *
                                              sizeof(float));
      Buffer got = backend_.device->allocate(want.bytes());
      backend_.ops->matmul(a.data(), type, own_rows(), w, want.as<float>(), *compute_);
      const RowExchange::Row row{
          static_cast<std::size_t>(cols) * size_of(type),
          static_cast<std::size_t>(w.padded_rows() / world().size()) * sizeof(float)};
      for (const RowExchange::Room& room : rooms(row, kMost)) {
        for (PeerExchange* const by : ways(room)) {
          Exchange exchange(backend_, room, *exchange_, by);
          exchange.ops.matmul(a.data(), type, own_rows(), unit.matrices(true), got.as<float>(),
                              *compute_);
          const std::int64_t count = own_rows() * w.padded_rows();
          // Kernels for many rows round unpacked weights, those for few do not.
          const DType precision = format.packed() ? DType::kBFloat16 : DType::kFloat32;
          expect_equal(download(got, DType::kFloat32, count),
                       download(want, DType::kFloat32, count), precision,
                       fmt::format("{}, {} bytes{}", name_of(format), room.bytes(),
                                   by == nullptr ? "" : " of peers"));
          const Exchanged moved = exchange.rows.take_exchanged();
          const std::int64_t round = RowExchange::round_rows(row, room, world().size());
          EXPECT_EQ(moved.trips, 2 * static_cast<std::size_t>(ceil_div(kMost, round)));
          EXPECT_EQ(moved.bytes, static_cast<std::size_t>(world().size() - 1) * kMost *
                                     (row.input + row.result));
          EXPECT_EQ(exchange.rows.take_exchanged().trips, 0u);
        }
      }
    }
  }
}

TEST_F(RowExchangeTest, ActivatesBeforeOrAfterTheTravelWithTheSameBits) {
  const std::int64_t cols = 64;
  const DType type = DType::kBFloat16;
  const std::int64_t even = 12 * world().size();
  for (const std::int64_t rows : {even, even - 1}) {
    for (const bool gated : {false, true}) {
      const SharedUnit unit(
          *backend_.device, *compute_,
          gated ? std::vector<std::int64_t>{rows, rows} : std::vector<std::int64_t>{rows}, cols,
          DType::kBFloat16);
      const Matrices w = unit.matrices(false);
      const Buffer bias = upload(random_values(rows, 21), DType::kFloat32);
      const Buffer up_bias = upload(random_values(rows, 22), DType::kFloat32);
      const Activate activate{.activation = gated ? Activation::kSilu : Activation::kGeluTanh,
                              .bias = bias.as<float>(),
                              .up = gated ? w.first(1) : -1,
                              .up_bias = gated ? up_bias.as<float>() : nullptr};
      const Buffer a =
          upload(random_values(kMost * cols, 3 + static_cast<std::uint64_t>(world().rank())), type);
      Buffer product = backend_.device->allocate(static_cast<std::size_t>(kMost * w.padded_rows()) *
                                                 sizeof(float));
      Buffer want = backend_.device->allocate(static_cast<std::size_t>(kMost * w.padded_rows()) *
                                              size_of(type));
      Buffer got = backend_.device->allocate(want.bytes());
      backend_.ops->matmul_activate(a.data(), type, own_rows(), w, activate, product.as<float>(),
                                    want.data(), type, *compute_);
      const RowExchange::Row widest{
          static_cast<std::size_t>(cols) * size_of(type),
          static_cast<std::size_t>(w.padded_rows() / world().size()) * sizeof(float)};
      for (const RowExchange::Room& room : rooms(widest, kMost)) {
        for (PeerExchange* const by : ways(room)) {
          Exchange exchange(backend_, room, *exchange_, by);
          exchange.ops.matmul_activate(a.data(), type, own_rows(), unit.matrices(true), activate,
                                       product.as<float>(), got.data(), type, *compute_);
          const std::int64_t count = own_rows() * rows;
          expect_equal(download(got, type, count), download(want, type, count), type,
                       fmt::format("{} rows, {}, {} bytes{}", rows, gated ? "gated" : "plain",
                                   room.bytes(), by == nullptr ? "" : " of peers"));
          const std::size_t result = rows == even ? 12 * size_of(type) : widest.result;
          EXPECT_EQ(exchange.rows.take_exchanged().bytes,
                    static_cast<std::size_t>(world().size() - 1) * kMost * (widest.input + result));
        }
      }
    }
  }
}

// A rank that replays a graph and one that enqueues each call meet in the same exchanges.
TEST_F(RowExchangeTest, IsRecordedBySomeRanksAndNotByOthersWherePeersExchange) {
  const std::int64_t cols = 256;
  const DType type = DType::kBFloat16;
  const RowExchange::Row row{cols * 2, 48 / static_cast<std::size_t>(world().size()) * 4};
  const RowExchange::Room room = RowExchange::room(row, 4, world().size());
  if (ways(room).size() < 2) GTEST_SKIP() << "no peers";
  const SharedUnit unit(*backend_.device, *compute_, {48}, cols, type);
  Exchange exchange(backend_, room, *exchange_, peers_.get());
  ASSERT_TRUE(exchange.rows.recordable());
  Buffer a = backend_.device->allocate(static_cast<std::size_t>(kMost * cols) * size_of(type));
  Buffer want = backend_.device->allocate(kMost * 48 * sizeof(float));
  Buffer got = backend_.device->allocate(want.bytes());
  const auto enqueue = [&] {
    exchange.ops.matmul(a.data(), type, own_rows(), unit.matrices(true), got.as<float>(),
                        *compute_);
  };
  enqueue();  // all kernels are loaded
  compute_->synchronize();
  std::unique_ptr<Graph> graph;
  if (world().rank() % 2 == 0) graph = backend_.device->record(*compute_, enqueue);
  for (std::uint64_t pass = 0; pass < 20; ++pass) {
    const Buffer inputs = upload(
        random_values(kMost * cols, 100 * pass + static_cast<std::uint64_t>(world().rank())), type);
    backend_.device->copy(a.data(), inputs.data(), a.bytes(), *compute_);
    if (graph) {
      graph->launch(*compute_);
    } else {
      enqueue();
    }
    backend_.ops->matmul(a.data(), type, own_rows(), unit.matrices(false), want.as<float>(),
                         *compute_);
    const std::int64_t count = own_rows() * 48;
    expect_equal(download(got, DType::kFloat32, count), download(want, DType::kFloat32, count),
                 DType::kFloat32, fmt::format("pass {}", pass));
  }
}

TEST_F(RowExchangeTest, WaitsForRanksThatAreLateWherePeersExchange) {
  const std::int64_t cols = 4096;
  const DType type = DType::kBFloat16;
  const RowExchange::Row row{cols * 2, 48 / static_cast<std::size_t>(world().size()) * 4};
  const RowExchange::Room room = RowExchange::room(row, kMost, world().size());
  if (ways(room).size() < 2) GTEST_SKIP() << "no peers";
  const SharedUnit unit(*backend_.device, *compute_, {48}, cols, type);
  Exchange exchange(backend_, room, *exchange_, peers_.get());
  const Buffer a =
      upload(random_values(kMost * cols, 3 + static_cast<std::uint64_t>(world().rank())), type);
  Buffer want = backend_.device->allocate(kMost * 48 * sizeof(float));
  Buffer got = backend_.device->allocate(want.bytes());
  backend_.ops->matmul(a.data(), type, own_rows(), unit.matrices(false), want.as<float>(),
                       *compute_);
  for (int late = 0; late < world().size(); ++late) {
    if (world().rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    for (int i = 0; i < 3; ++i) {
      backend_.device->zero(got.data(), got.bytes(), *compute_);
      exchange.ops.matmul(a.data(), type, own_rows(), unit.matrices(true), got.as<float>(),
                          *compute_);
      const std::int64_t count = own_rows() * 48;
      expect_equal(download(got, DType::kFloat32, count), download(want, DType::kFloat32, count),
                   DType::kFloat32, fmt::format("rank {} late, product {}", late, i));
    }
  }
}

TEST_F(RowExchangeTest, RefusesAProductOfWhichItsMemoryHoldsNoRow) {
  const SharedUnit unit(*backend_.device, *compute_, {48}, 96, DType::kFloat32);
  const Buffer a = upload(random_values(kMost * 96, 3), DType::kFloat32);
  Buffer y = backend_.device->allocate(kMost * 48 * 2 * sizeof(float));
  Exchange exchange(backend_, {256, 256}, *exchange_);
  EXPECT_THROW(exchange.ops.matmul(a.data(), DType::kFloat32, own_rows(), unit.matrices(true),
                                   y.as<float>(), *compute_),
               Error);
}

}  // namespace
}  // namespace zi::test
