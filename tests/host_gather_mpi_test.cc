// All-gathers over ranks that are pretended to be on several hosts.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "comm/mpi_communicator.h"
#include "mpi_world.h"
#include "zero_infer/cpu_stream.h"
#include "zero_infer/error.h"
#include "zero_infer/rank_hosts.h"

namespace zi::test {
namespace {

std::size_t ranks() { return static_cast<std::size_t>(world().size()); }
std::size_t own_rank() { return static_cast<std::size_t>(world().rank()); }

/// Each way to put the ranks on hosts: of four, 2 + 2, 3 + 1, 1 + 3, in turn, and each alone.
std::vector<std::vector<int>> ways() {
  std::vector<std::vector<int>> all = {{0, 0, 1, 1}, {0, 0, 0, 1}, {5, 7, 7, 7},
                                       {0, 1, 0, 1}, {0, 1, 2, 3}, {0, 0, 0, 0}};
  for (auto& way : all) way.resize(ranks());
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());  // for fewer ranks some are the same
  return all;
}

std::byte value_at(std::size_t rank, std::size_t i) {
  return static_cast<std::byte>(rank * 37 + i * 101 + (i >> 8) * 7);
}

/// (ranks, bytes), with guards before and after, and this rank's block in its place.
class Blocks {
 public:
  explicit Blocks(std::size_t bytes)
      : bytes_(bytes), memory_(ranks() * bytes + 2 * kGuard, std::byte{0xA5}) {
    for (std::size_t i = 0; i < bytes; ++i) own()[i] = value_at(own_rank(), i);
  }
  std::byte* data() { return memory_.data() + kGuard; }
  std::byte* own() { return data() + own_rank() * bytes_; }
  void expect_gathered() {
    const auto guard = [](std::byte b) { return b == std::byte{0xA5}; };
    ASSERT_TRUE(std::all_of(memory_.begin(), memory_.begin() + kGuard, guard));
    ASSERT_TRUE(std::all_of(memory_.end() - kGuard, memory_.end(), guard));
    std::vector<std::byte> wanted(bytes_);
    for (std::size_t r = 0; r < ranks(); ++r) {
      for (std::size_t i = 0; i < bytes_; ++i) wanted[i] = value_at(r, i);
      ASSERT_TRUE(std::equal(wanted.begin(), wanted.end(), data() + r * bytes_)) << "rank " << r;
    }
  }
  bool operator==(const Blocks& other) const { return memory_ == other.memory_; }

 private:
  static constexpr std::size_t kGuard = 64;
  std::size_t bytes_;
  std::vector<std::byte> memory_;
};

/// What each host received, by its number.
std::vector<std::uint64_t> received_by_hosts(const RankHosts& hosts, std::uint64_t mine) {
  std::vector<std::uint64_t> all(static_cast<std::size_t>(hosts.count()));
  const std::vector<std::uint64_t> of_ranks = world().all_gather(mine);
  for (int r = 0; r < hosts.ranks(); ++r) {
    all[static_cast<std::size_t>(hosts.host_of(r))] += of_ranks[static_cast<std::size_t>(r)];
  }
  return all;
}

TEST(RankHosts, NumberHostsByTheirLowestRanksInAnyOrderOfRanks) {
  const RankHosts hosts({7, 3, 7, 9, 3, 7});
  EXPECT_EQ(hosts.ranks(), 6);
  EXPECT_EQ(hosts.count(), 3);
  EXPECT_EQ(hosts.most_on_a_host(), 3);
  const std::vector<int> host_of = {0, 1, 0, 2, 1, 0}, place_of = {0, 0, 1, 0, 1, 2};
  for (int r = 0; r < 6; ++r) {
    EXPECT_EQ(hosts.host_of(r), host_of[static_cast<std::size_t>(r)]);
    EXPECT_EQ(hosts.place_of(r), place_of[static_cast<std::size_t>(r)]);
  }
  EXPECT_EQ(std::vector<int>(hosts.beside(5).begin(), hosts.beside(5).end()),
            (std::vector<int>{0, 2, 5}));
  EXPECT_EQ(RankHosts::one(4).count(), 1);
}

TEST(World, KnowsThatItsRanksAreOnOneHost) {
  EXPECT_EQ(world().hosts().count(), 1);
  EXPECT_EQ(world().hosts().ranks(), world().size());
}

TEST(MpiCommunicator, TakesEachBlockIntoAHostOnceWhateverTheSizeOfBlockAndPiece) {
  struct Shape {
    std::size_t bytes, piece_bytes;
  };
  // None is a multiple of all slices, and some are smaller than one for each rank of a host.
  const std::vector<Shape> shapes = {
      {0, 100},     {1, 100},      {63, 7},          {129, 1000},
      {4097, 9999}, {20003, 2999}, {200001, 100000}, {700001, MpiCommunicator::kPieceBytes}};
  CpuStream stream("gathers");
  MpiCommunicator flat(world(), RankHosts::one(world().size()));
  for (const std::vector<int>& way : ways()) {
    const RankHosts hosts(way);
    for (const auto& [bytes, piece_bytes] : shapes) {
      MpiCommunicator communicator(world(), hosts, piece_bytes);
      Blocks in_place(bytes), apart(bytes), wanted(bytes);
      const std::vector<std::byte> own(apart.own(), apart.own() + bytes);
      std::memset(apart.own(), 0, bytes);
      communicator.all_gather(in_place.own(), in_place.data(), bytes, stream);
      communicator.all_gather(own.data(), apart.data(), bytes, stream);
      flat.all_gather(wanted.own(), wanted.data(), bytes, stream);
      stream.synchronize();
      in_place.expect_gathered();
      EXPECT_TRUE(in_place == wanted);
      EXPECT_TRUE(apart == wanted);
      const auto received = received_by_hosts(hosts, communicator.network_bytes());
      for (int h = 0; h < hosts.count(); ++h) {
        const std::size_t away = ranks() - hosts.ranks_of(h).size();
        EXPECT_EQ(received[static_cast<std::size_t>(h)], 2 * away * bytes)
            << "host " << h << " of " << hosts.count() << ", blocks of " << bytes;
      }
    }
  }
  EXPECT_EQ(flat.network_bytes(), 0u) << "all on one host";
}

TEST(MpiCommunicator, SharesTheNetworkAmongTheRanksOfAHost) {
  constexpr std::size_t kBytes = 600000;
  CpuStream stream("gathers");
  for (const std::vector<int>& way : ways()) {
    const RankHosts hosts(way);
    MpiCommunicator communicator(world(), hosts);
    Blocks blocks(kBytes);
    communicator.all_gather(blocks.own(), blocks.data(), kBytes, stream);
    stream.synchronize();
    const std::size_t beside = hosts.beside(world().rank()).size();
    const std::size_t away = ranks() - beside;
    const double share = static_cast<double>(away * kBytes) / static_cast<double>(beside);
    EXPECT_NEAR(static_cast<double>(communicator.network_bytes()), share,
                64.0 * static_cast<double>(away * beside));
  }
}

TEST(MpiCommunicator, ManyGathersAndExchangesOverHostsKeepTheirOrder) {
  constexpr std::size_t kBytes = 5001;
  constexpr int kRounds = 8;
  for (const std::vector<int>& way : ways()) {
    CpuStream stream("gathers");
    const RankHosts hosts(way);
    MpiCommunicator communicator(world(), hosts, 1000);
    std::vector<Blocks> gathered(kRounds, Blocks(kBytes)), exchanged(kRounds, Blocks(kBytes));
    for (std::size_t i = 0; i < kRounds; ++i) {
      communicator.all_gather(gathered[i].own(), gathered[i].data(), kBytes, stream);
      communicator.all_to_all(gathered[i].data(), exchanged[i].data(), kBytes, stream);
    }
    stream.synchronize();
    for (std::size_t i = 0; i < kRounds; ++i) {
      gathered[i].expect_gathered();
      for (std::size_t r = 0; r < ranks(); ++r) {  // block `own_rank` of each
        ASSERT_EQ(exchanged[i].data()[r * kBytes + 17], value_at(own_rank(), 17));
      }
    }
    // Of an exchange each rank gets a block from each rank elsewhere.
    const std::size_t beside = hosts.beside(world().rank()).size(), away = ranks() - beside;
    EXPECT_EQ(received_by_hosts(hosts, communicator.network_bytes())
                  .at(static_cast<std::size_t>(hosts.host_of(world().rank()))),
              kRounds * away * kBytes * (1 + beside));
  }
}

TEST(MpiCommunicator, RefusesHostsOfAnotherNumberOfRanks) {
  EXPECT_THROW(MpiCommunicator(world(), RankHosts::one(world().size() + 1)), Error);
}

TEST(RankGroup, SplitsIntoPartsThatTalkAmongThemselves) {
  const int rank = world().rank();
  const auto part = world().split(rank % 2);
  EXPECT_EQ(part->rank(), rank / 2);
  EXPECT_EQ(part->size(), (world().size() + (rank % 2 == 0 ? 1 : 0)) / 2);
  EXPECT_EQ(part->hosts().ranks(), part->size());
  EXPECT_EQ(part->host(), world().host());
  for (const int r : part->all_gather(rank)) EXPECT_EQ(r % 2, rank % 2);
  EXPECT_EQ(part->broadcast(std::to_string(rank), 0), std::to_string(rank % 2));
  part->barrier();
  // What one part refuses, the job hears of where it asks.
  const auto refused_by_odd_ranks = [&] {
    part->all_or_none([&] {
      if (rank == 1) throw ConfigError("odd");
    });
  };
  if (world().size() == 1) return;
  if (rank == 1) {
    EXPECT_THROW(world().all_or_none(refused_by_odd_ranks), ConfigError);
  } else {
    EXPECT_THROW(world().all_or_none(refused_by_odd_ranks), PeerError);
  }
  auto communicator = part->make_cpu_communicator();
  CpuStream stream("gathers");
  std::vector<int> ranks_of_part(static_cast<std::size_t>(part->size()));
  communicator->all_gather(&rank, ranks_of_part.data(), sizeof(rank), stream);
  stream.synchronize();
  for (std::size_t i = 0; i < ranks_of_part.size(); ++i) {
    EXPECT_EQ(ranks_of_part[i], static_cast<int>(2 * i) + rank % 2);
  }
}

}  // namespace
}  // namespace zi::test
