#pragma once

// A layer fetcher on CPU streams with stores that check how they are called, and bodies that check
// every byte of the weights on the compute stream. Used with a world of one, with a fake
// communicator and under MPI.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "offload/layer_fetcher.h"
#include "zero_infer/backend.h"
#include "zero_infer/bytes.h"
#include "zero_infer/cpu_stream.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi::test {

/// The byte at `offset` of a rank's shard of a unit.
inline std::byte shard_byte(int unit, int rank, std::size_t offset) {
  const auto word =
      random_bits(static_cast<std::uint64_t>(unit), static_cast<std::uint64_t>(rank), offset / 8);
  return static_cast<std::byte>(word >> (offset % 8 * 8));
}

inline std::vector<std::byte> make_shard(int unit, int rank, std::size_t bytes) {
  std::vector<std::byte> shard(bytes);
  for (std::size_t i = 0; i < bytes; ++i) shard[i] = shard_byte(unit, rank, i);
  return shard;
}

/// Sleeps up to `most_us`, by the seed; every third time not at all.
inline void random_delay(std::uint64_t seed, std::uint64_t counter, std::uint64_t most_us) {
  const std::uint64_t bits = random_bits(seed, 99, counter);
  if (most_us == 0 || bits % 3 == 0) return;
  std::this_thread::sleep_for(std::chrono::microseconds(bits / 3 % most_us));
}

/// What happened on the host, in order: `start 3`, `finish 3`, `body 3`.
using HostLog = std::vector<std::string>;

/// A store of any tier whose storage and copies are randomly slow. Fails the test when reads are
/// not started before they are finished, are finished in another order, or are started twice.
class FakeStore final : public ShardStore {
 public:
  FakeStore(Tier tier, std::uint64_t seed, std::uint64_t delay_us, HostLog* log)
      : tier_(tier), seed_(seed), delay_us_(delay_us), log_(log) {}

  /// `shard`: this rank's, from `at` on in what is given: the shards of all ranks of a unit that is
  /// replicated.
  void hold(int unit, std::vector<std::byte> shards, std::size_t at, std::size_t bytes) {
    held_.resize(std::max(held_.size(), static_cast<std::size_t>(unit) + 1));
    held_[static_cast<std::size_t>(unit)] = {std::move(shards), at, bytes};
  }
  Tier tier() const override { return tier_; }
  void start_read(int unit) override {
    log_->push_back("start " + std::to_string(unit));
    if (tier_ == Tier::kHost) return;  // it may be taken from on_host instead
    for (int other : under_way_) EXPECT_NE(other, unit) << "is under way already";
    under_way_.push_back(unit);
  }
  void finish_read(int unit, std::byte* dst, Stream& copies) override {
    log_->push_back("finish " + std::to_string(unit));
    ++finished;
    if (finished == fail_at) throw IoError("/fake/shard: read of 4096 bytes at offset 8192 failed");
    if (tier_ != Tier::kHost) {
      ASSERT_FALSE(under_way_.empty()) << "unit " << unit << " was not started";
      EXPECT_EQ(under_way_.front(), unit) << "not in the order of the starts";
      under_way_.pop_front();
    }
    if (tier_ == Tier::kNvme) random_delay(seed_, ++counter_, delay_us_);
    const std::span<const std::byte> shard = held_.at(static_cast<std::size_t>(unit)).own();
    const std::uint64_t counter = ++counter_;
    const bool fails = finished == fail_in_stream_at;
    dynamic_cast<CpuStream&>(copies).enqueue([this, unit, shard, dst, counter, fails] {
      if (fails) throw IoError("a copy failed");
      if (on_copy) on_copy(unit);
      random_delay(seed_, counter, delay_us_);
      std::memcpy(dst, shard.data(), shard.size());
    });
  }
  const std::byte* resident(int unit) const override {
    if (tier_ != Tier::kDevice) return nullptr;
    return held_.at(static_cast<std::size_t>(unit)).own().data();
  }
  const std::byte* replicated(int unit) const override {
    if (static_cast<std::size_t>(unit) >= held_.size()) return nullptr;
    const Held& held = held_[static_cast<std::size_t>(unit)];
    return held.shards.size() > held.bytes ? held.shards.data() : nullptr;
  }
  const std::byte* on_host(int unit) const override {
    if (tier_ != Tier::kHost) return nullptr;
    return held_.at(static_cast<std::size_t>(unit)).own().data();
  }

  std::function<void(int unit)> on_copy;  // called on the stream, before the unit is copied
  int finished = 0;
  int fail_at = -1;            // the finish_read that throws, from 1
  int fail_in_stream_at = -1;  // the one whose copy throws

 private:
  Tier tier_;
  std::uint64_t seed_;
  std::uint64_t delay_us_;
  std::uint64_t counter_ = 0;
  HostLog* log_;
  struct Held {
    std::vector<std::byte> shards;
    std::size_t at = 0;
    std::size_t bytes = 0;
    std::span<const std::byte> own() const { return std::span(shards).subspan(at, bytes); }
  };
  std::vector<Held> held_;
  std::deque<int> under_way_;
};

struct HarnessOptions {
  std::vector<Tier> tiers;  // of each unit
  int slots = 2;
  int world = 1;
  int rank = 0;
  std::uint64_t seed = 1;
  std::uint64_t delay_us = 300;
  bool only_own = false;  // weights stay in every pass
  /// Of each unit of the device tier, whether it is replicated; empty: none.
  std::vector<bool> replicated = {};
};

class FetcherHarness {
 public:
  /// Units have 1 to 3 pages a rank, unit u by its number.
  static std::size_t pages_of(int unit) { return 1 + static_cast<std::size_t>(unit) % 3; }

  FetcherHarness(const HarnessOptions& harness_options, Communicator* communicator)
      : options(harness_options) {
    const int units = static_cast<int>(options.tiers.size());
    for (Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme}) {
      stores.push_back(std::make_unique<FakeStore>(
          tier, options.seed + static_cast<std::uint64_t>(tier), options.delay_us, &log));
    }
    std::vector<ShardStore*> store_of;
    std::vector<const PartitionLayout*> layout_of;
    for (int u = 0; u < units; ++u) {
      // A page is 32 rows of each matrix.
      const auto rows = static_cast<std::int64_t>(pages_of(u)) * 32 * options.world;
      layouts.push_back(std::make_unique<PartitionLayout>(
          UnitSpec{"unit " + std::to_string(u), {{"v", {rows, 32}}, {"w", {rows, 32}}}, {}},
          DType::kBFloat16, options.world));
      FakeStore& store = store_in(options.tiers[static_cast<std::size_t>(u)]);
      const std::size_t bytes = layouts.back()->shard_bytes();
      if (replicated(u)) {
        std::vector<std::byte> all;
        for (int rank = 0; rank < options.world; ++rank) {
          const std::vector<std::byte> shard = make_shard(u, rank, bytes);
          all.insert(all.end(), shard.begin(), shard.end());
        }
        store.hold(u, std::move(all), static_cast<std::size_t>(options.rank) * bytes, bytes);
      } else {
        store.hold(u, make_shard(u, options.rank, bytes), 0, bytes);
      }
      store_of.push_back(&store);
      layout_of.push_back(layouts.back().get());
    }
    fetcher =
        std::make_unique<LayerFetcher>(*device, communicator, options.rank, layout_of, store_of,
                                       options.slots, *gathers, Buffer(), options.only_own);
  }

  FakeStore& store_in(Tier tier) { return *stores[static_cast<std::size_t>(tier)]; }

  FakeStore& store_of(int unit) { return store_in(options.tiers[static_cast<std::size_t>(unit)]); }

  bool replicated(int unit) const {
    const auto u = static_cast<std::size_t>(unit);
    return options.tiers[u] == Tier::kDevice && !options.replicated.empty() &&
           options.replicated[u];
  }

  bool in_place(int unit) const {
    return options.world == 1 && options.tiers[static_cast<std::size_t>(unit)] == Tier::kDevice;
  }

  /// Runs on the compute stream: every byte of every rank, or where weights stay of this one, must
  /// be there, stay there while the unit computes, and may be anything afterwards.
  void enqueue_check(int unit, const UnitWeights& weights, CpuStream& compute, bool stays) {
    log.push_back("body " + std::to_string(unit));
    EXPECT_EQ(weights.layout, layouts[static_cast<std::size_t>(unit)].get());
    auto* bytes = const_cast<std::byte*>(weights.data);
    ASSERT_NE(bytes, nullptr);
    EXPECT_EQ(weights.matrix(0).data, weights.data);
    EXPECT_EQ(weights.matrix(0).only_block, stays ? options.rank : -1);
    const std::size_t shard = weights.layout->shard_bytes();
    const std::size_t size = stays ? shard : weights.layout->gathered_bytes();
    const int first_rank = stays ? options.rank : 0;
    const bool rests =
        bytes == store_of(unit).resident(unit) || bytes == store_of(unit).replicated(unit);
    EXPECT_TRUE(rests || !replicated(unit)) << "unit " << unit << " was brought to a slot";
    const std::uint64_t counter = ++bodies;
    std::vector<bool> on_host(size);  // bytes of the host's share, which the slot need not have
    for (std::size_t i = 0; i < weights.layout->matrices().size(); ++i) {
      const RowBlockMatrix m = stays ? weights.matrix(i).own() : weights.matrix(i);
      if (m.host_rows == 0) continue;
      const std::byte* const host = store_of(unit).on_host(unit);
      const auto at = static_cast<std::size_t>(m.host - host);
      EXPECT_EQ(at, weights.layout->matrices()[i].offset + m.device_part().bytes());
      std::fill_n(on_host.begin() + static_cast<std::ptrdiff_t>(at), m.host_part().bytes(), true);
      bytes_on_host += m.host_part().bytes();
    }
    compute.enqueue([this, unit, bytes, size, shard, first_rank, rests, counter, on_host] {
      const auto wrong = [&] {
        std::size_t count = 0;
        for (std::size_t i = 0; i < size; ++i) {
          if (on_host[i]) continue;
          if (bytes[i] != shard_byte(unit, first_rank + static_cast<int>(i / shard), i % shard)) {
            ++count;
          }
        }
        return count;
      };
      wrong_bytes += wrong();
      random_delay(options.seed + 50, counter, options.delay_us);
      wrong_bytes += wrong();
      if (!rests) std::memset(bytes, 0xEE, size);
      ++units_computed;
    });
  }

  /// One pass of an active or an idle rank.
  void run_pass(CpuStream& compute, bool last, bool idle = false, bool stays = false,
                double host_share = 0) {
    const LayerFetcher::Pass pass{.last = last, .stays = stays, .host_share = host_share};
    if (idle) return fetcher->run_pass({}, compute, pass);
    int expected = 0;
    fetcher->run_pass(
        [&](int unit, const UnitWeights& weights) {
          EXPECT_EQ(unit, expected++);
          enqueue_check(unit, weights, compute, stays);
        },
        compute, pass);
    EXPECT_EQ(expected, static_cast<int>(layouts.size()));
  }

  // Everything that tasks use comes before the streams, whose destructors wait for the tasks.
  HarnessOptions options;
  std::uint64_t bodies = 0;
  std::size_t bytes_on_host = 0;  // of the weights that bodies got
  HostLog log;
  std::atomic<std::size_t> wrong_bytes{0};
  std::atomic<int> units_computed{0};
  std::unique_ptr<Device> device = make_cpu_device();
  std::vector<std::unique_ptr<FakeStore>> stores;
  std::vector<std::unique_ptr<PartitionLayout>> layouts;
  std::unique_ptr<Stream> gathers = device->make_stream("gathers");
  CpuStream compute{"compute"};
  std::unique_ptr<LayerFetcher> fetcher;
};

/// A mix of the tiers by the seed; seeds 0 to 2 give one tier alone.
inline std::vector<Tier> mixed_tiers(int units, std::uint64_t seed) {
  std::vector<Tier> tiers;
  for (int u = 0; u < units; ++u) {
    const std::uint64_t draw =
        seed < 3 ? seed : random_bits(seed, 5, static_cast<std::uint64_t>(u)) % 3;
    tiers.push_back(static_cast<Tier>(draw));
  }
  return tiers;
}

}  // namespace zi::test
