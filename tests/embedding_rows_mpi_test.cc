// Embedding rows that come from the ranks that hold them, for the ranks that mpirun started.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "engine/backend_choice.h"
#include "engine/embedding_rows.h"
#include "engine/work_exchange.h"
#include "mpi_world.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi::test {
namespace {

constexpr std::int64_t kPassTokens = 400;

RunConfig backend_config() {
  RunConfig config;
  config.backend = wants_cuda() ? BackendChoice::kCuda : BackendChoice::kCpu;
  return config;
}

/// Why the backend cannot be had here; empty when it can.
std::string missing_backend() {
  try {
    make_backend(world(), backend_config());
    return "";
  } catch (const ConfigError& error) {
    return error.what();
  } catch (const PeerError&) {
    return "another rank cannot have it";
  }
}

/// Random bits, among them numbers that a sum or a rounding would change: -0, the smallest ones,
/// infinities. (A NaN may get quiet when it is made a float32, so that it is the same on one kind
/// of device only.)
std::vector<std::byte> table_bytes(std::int64_t rows, std::int64_t hidden, DType dtype) {
  const std::size_t size = size_of(dtype);
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows * hidden) * size);
  const std::vector<std::uint32_t> special =
      dtype == DType::kFloat32    ? std::vector<std::uint32_t>{0x80000000u, 1u, 0x7f800000u}
      : dtype == DType::kBFloat16 ? std::vector<std::uint32_t>{0x8000u, 1u, 0xff80u}
                                  : std::vector<std::uint32_t>{0x8000u, 1u, 0x7c00u};
  for (std::size_t i = 0; i * size < bytes.size(); ++i) {
    auto bits = static_cast<std::uint32_t>(random_bits(3, 4, i));
    bits &= dtype == DType::kFloat16 ? 0xbbffu : dtype == DType::kBFloat16 ? 0xbf7fu : 0xbf7fffffu;
    if (i % 5 == 0) bits = special[i / 5 % special.size()];
    std::memcpy(bytes.data() + i * size, &bits, size);
  }
  return bytes;
}

struct Table {
  std::int64_t rows;
  std::int64_t hidden;
  DType dtype;
  bool in_host_memory = false;  // pinned
};

/// A table that is cut over the ranks, and passes that look rows of it up.
class Lookup {
 public:
  /// Collective. By the memory of peers where the devices reach it and `by_peers`, else by
  /// collective calls.
  Lookup(const Table& table, Backend& backend, bool by_peers = false)
      : backend_(&backend), values_(table_bytes(table.rows, table.hidden, table.dtype)) {
    Device& device = *backend.device;
    plan_.pass_tokens = kPassTokens;
    plan_.device_is_host = device.is_host();
    plan_.embedding.emplace_back(UnitSpec{"embedding", {{"e", {table.rows, table.hidden}}}, {}},
                                 table.dtype, world().size());
    config_.hidden = table.hidden;
    row_bytes_ = static_cast<std::size_t>(table.hidden) * size_of(table.dtype);
    dtype_ = table.dtype;
    if (by_peers && backend.communicator) {
      plan_.product_exchange = RowExchange::room(
          {4, 4 * kPeersRows * static_cast<std::size_t>(table.hidden)}, 1, world().size());
      peers_ = backend.communicator->make_peer_exchange(device, plan_.product_exchange.bytes());
    }
    const PartitionLayout& layout = plan_.embedding_layout();
    shard_ = table.in_host_memory ? device.allocate_pinned(layout.shard_bytes())
                                  : device.allocate(layout.shard_bytes());
    const auto own = layout.rows_of(0, world().rank());
    device.zero(shard_.data(), shard_.bytes(), *compute_);
    device.copy(shard_.data(), values_.data() + static_cast<std::size_t>(own.first) * row_bytes_,
                static_cast<std::size_t>(own.count) * row_bytes_, *compute_);
    compute_->synchronize();
    rows_.emplace(device, *backend.ops,
                  EmbeddingRows::Ways{backend.communicator.get(), exchange_.get(), peers_.get()},
                  plan_, config_, world().rank(), shard_.data());
  }

  /// Collective. How many values of this rank's rows have other bits than the table's.
  std::size_t wrong(const std::vector<std::int32_t>& all_ids, std::span<const std::int32_t> own) {
    Device& device = *backend_->device;
    const auto indices = rows_->indices(all_ids);
    EXPECT_LE(std::ssize(indices),
              EmbeddingRows::most_indices(EmbeddingRows::shape_of(plan_, config_)));
    const std::size_t count = own.size() * static_cast<std::size_t>(config_.hidden);
    Buffer on_device = device.allocate(std::max<std::size_t>(indices.size_bytes(), 4));
    Buffer out = device.allocate((count + 1) * sizeof(float));
    std::vector<float> got(count + 1, 17.0f);  // one to guard the end
    device.copy(on_device.data(), indices.data(), indices.size_bytes(), *compute_);
    device.copy(out.data(), got.data(), out.bytes(), *compute_);
    rows_->look_up(on_device.as<std::int32_t>(), out.as<float>(), *compute_);
    device.copy(got.data(), out.data(), out.bytes(), *compute_);
    compute_->synchronize();
    EXPECT_EQ(got.back(), 17.0f) << "written beyond the end";
    std::vector<float> want(static_cast<std::size_t>(config_.hidden));
    std::size_t wrong = 0;
    for (std::size_t t = 0; t < own.size(); ++t) {
      convert(values_.data() + static_cast<std::size_t>(own[t]) * row_bytes_, dtype_, want.data(),
              DType::kFloat32, want.size());
      const auto* const row = got.data() + t * want.size();
      for (std::size_t c = 0; c < want.size(); ++c) {
        wrong += std::memcmp(row + c, want.data() + c, sizeof(float)) != 0 ? 1 : 0;
      }
    }
    return wrong;
  }

  std::int64_t round_tokens() const {
    return EmbeddingRows::round_tokens(EmbeddingRows::shape_of(plan_, config_));
  }

 private:
  /// Some passes have more rows of one rank for another, and go by collective calls.
  static constexpr std::size_t kPeersRows = 100;

  Backend* backend_;
  std::vector<std::byte> values_;
  MemoryPlan plan_;
  ModelConfig config_;
  DType dtype_ = DType::kBFloat16;
  std::size_t row_bytes_ = 0;
  Buffer shard_;
  std::unique_ptr<Stream> compute_ = backend_->device->make_stream("compute");
  std::unique_ptr<Stream> exchange_ = backend_->device->make_stream("gather");
  std::unique_ptr<PeerExchange> peers_;
  std::optional<EmbeddingRows> rows_;
};

/// Tokens of rank r in a pass: none, one, a few, or all that a pass holds, each rank in turn.
std::int64_t tokens_of(int rank, int pass) {
  constexpr std::int64_t kCounts[] = {1, 0, 7, kPassTokens, 130};
  return kCounts[(rank + pass) % std::size(kCounts)];
}

class EmbeddingRowsMpi : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = missing_backend(); !why.empty()) GTEST_SKIP() << why;
    backend_ = make_backend(world(), backend_config());
  }

  /// Collective. Passes whose ids are drawn by `draw(bits)`.
  void expect_rows(const Table& table, const std::function<std::uint64_t(std::uint64_t)>& draw,
                   const std::string& what) {
    for (const bool by_peers : {false, true}) {
      if (by_peers && !wants_cuda()) continue;
      Lookup lookup(table, backend_, by_peers);
      expect_rows(lookup, table, draw, what + (by_peers ? ", by peers" : ""));
    }
  }
  void expect_rows(Lookup& lookup, const Table& table,
                   const std::function<std::uint64_t(std::uint64_t)>& draw,
                   const std::string& what) {
    WorkExchange exchange(world(), world(), nullptr, nullptr, 0);
    for (int pass = 0; pass < 5; ++pass) {
      std::vector<std::int32_t> own;
      for (std::int64_t t = 0; t < tokens_of(world().rank(), pass); ++t) {
        const std::uint64_t bits =
            random_bits(static_cast<std::uint64_t>(world().rank()),
                        static_cast<std::uint64_t>(pass), static_cast<std::uint64_t>(t));
        own.push_back(
            static_cast<std::int32_t>(draw(bits) % static_cast<std::uint64_t>(table.rows)));
      }
      const auto all = exchange.share_rows(own, 0, 1);
      EXPECT_EQ(lookup.wrong(all.ids, own), 0u) << what << ", pass " << pass;
    }
  }

  Backend backend_;
};

TEST_F(EmbeddingRowsMpi, ComeWithTheBitsOfTheTableWhateverRankHoldsThem) {
  const auto any = [](std::uint64_t bits) { return bits; };
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    // 251 is cut unevenly for 2 to 4 ranks; of 5 rows, rank 3 of 4 holds none.
    for (const std::int64_t rows : {251, 5, 1}) {
      expect_rows({rows, 24, dtype}, any, fmt::format("{} rows of {}", rows, name_of(dtype)));
    }
    expect_rows({251, 7, dtype, true}, any, "an odd width, in host memory");
  }
}

TEST_F(EmbeddingRowsMpi, ComeAllFromOneRankWhereAllAskForItsRows) {
  expect_rows(
      {400, 24, DType::kBFloat16}, [](std::uint64_t bits) { return bits % 3; }, "first");
  expect_rows(
      {400, 24, DType::kBFloat16}, [](std::uint64_t bits) { return 399 - bits % 3; }, "last");
}

TEST_F(EmbeddingRowsMpi, ComeInRoundsWhereAllAtOnceWouldTakeTooMuchMemory) {
  const std::int64_t hidden = wants_cuda() ? 65536 : 8192;
  const Table table{97, hidden, DType::kBFloat16};
  if (world().size() > 1) {
    EXPECT_LT(3 * Lookup(table, backend_).round_tokens(), kPassTokens);
  }
  expect_rows(
      table, [](std::uint64_t bits) { return bits; }, "rounds");
}

TEST(ShareRows, GivesEveryRankTheIdsOfAllFilledUpToTheMost) {
  WorkExchange exchange(world(), world(), nullptr, nullptr, 0);
  const auto ranks = static_cast<std::size_t>(world().size());
  for (const std::int64_t expected : {0, 1, 3, 50}) {
    for (std::size_t longest : {0u, 1u, 3u, 9u}) {
      // The last rank has `longest`, the others one less each; samples count the other way.
      const auto count_of = [&](std::size_t r) {
        const std::size_t less = ranks - 1 - r;
        return longest > less ? longest - less : 0;
      };
      const auto rank = static_cast<std::size_t>(world().rank());
      const std::vector<std::int32_t> own(count_of(rank), static_cast<std::int32_t>(rank));
      const auto rows = exchange.share_rows(own, 10 - world().rank(), expected);
      EXPECT_EQ(rows.most_samples, 10);
      ASSERT_EQ(rows.ids.size() % ranks, 0u);
      const std::size_t most = rows.ids.size() / ranks;
      EXPECT_GE(most, longest);
      for (std::size_t r = 0; r < ranks; ++r) {
        for (std::size_t t = 0; t < most; ++t) {
          EXPECT_EQ(rows.ids[r * most + t], t < count_of(r) ? static_cast<std::int32_t>(r) : kNoId);
        }
      }
    }
  }
}

}  // namespace
}  // namespace zi::test
