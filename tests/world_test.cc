#include "zero_infer/world.h"

#include <gtest/gtest.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <climits>
#include <cstring>
#include <new>
#include <stdexcept>
#include <thread>

#include "comm/mpi_communicator.h"
#include "mpi_world.h"
#include "zero_infer/backend.h"
#include "zero_infer/cpu_stream.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi::test {
namespace {

std::size_t ranks() { return static_cast<std::size_t>(world().size()); }
std::size_t own_rank() { return static_cast<std::size_t>(world().rank()); }

std::string text_of(int rank, std::size_t bytes) {
  std::string text(bytes, '\0');
  for (std::size_t i = 0; i < bytes; ++i) {
    text[i] = static_cast<char>(random_bits(3, static_cast<std::uint64_t>(rank), i));
  }
  return text;
}

TEST(World, NumbersItsRanksOnceOverAllAndOnceOnTheHost) {
  const std::array<int, 3> own = {world().rank(), world().local_rank(), world().local_size()};
  const auto all = world().all_gather(own);
  ASSERT_EQ(all.size(), ranks());
  for (int r = 0; r < world().size(); ++r) {
    // The rank on the host is the rank: tests run on one host.
    EXPECT_EQ(all[static_cast<std::size_t>(r)], (std::array{r, r, world().size()}));
  }
  EXPECT_FALSE(world().host().empty());
}

struct Reading {
  std::int8_t sensor;
  double value;
  std::array<std::uint16_t, 3> counts;
};

TEST(World, GathersEveryRanksValueInTheOrderOfRanks) {
  const auto of = [](int rank) {
    const auto n = static_cast<std::uint16_t>(rank);
    return Reading{static_cast<std::int8_t>(-rank),
                   rank + 0.5,
                   {n, static_cast<std::uint16_t>(n * 7), static_cast<std::uint16_t>(65535 - n)}};
  };
  const std::vector<Reading> all = world().all_gather(of(world().rank()));
  ASSERT_EQ(all.size(), ranks());
  for (int r = 0; r < world().size(); ++r) {
    const Reading& reading = all[static_cast<std::size_t>(r)];
    EXPECT_EQ(reading.sensor, of(r).sensor);
    EXPECT_EQ(reading.value, of(r).value);
    EXPECT_EQ(reading.counts, of(r).counts);
  }
}

/// Whether World gathers such values.
template <typename T>
concept Gathered = requires(World& world, const T& mine) {
  world.all_gather(mine);
};

TEST(World, GathersNoValueThatMeansNothingOnAnotherRank) {
  struct Block {
    std::array<char, 65537> bytes;
  };
  EXPECT_TRUE(Gathered<int>);
  EXPECT_FALSE(Gathered<std::string>);
  EXPECT_FALSE(Gathered<const int*>);
  EXPECT_FALSE(Gathered<bool>);
  EXPECT_FALSE(Gathered<Block>);
}

TEST(World, BroadcastsBinaryAndEmptyStringsFromAnyRoot) {
  for (int root = 0; root < world().size(); ++root) {
    for (std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{3000000}}) {
      const std::string sent = text_of(root, bytes);
      EXPECT_EQ(world().broadcast(world().rank() == root ? sent : "ignored", root), sent);
    }
  }
}

TEST(World, GathersStringsOfAnyLengthOnTheRootOnly) {
  for (int root = 0; root < world().size(); ++root) {
    // The second round has an empty string of rank 0 and large ones.
    for (std::size_t step : {std::size_t{1}, std::size_t{1000003}}) {
      const auto all = world().gather(text_of(world().rank(), own_rank() * step), root);
      if (world().rank() != root) {
        EXPECT_TRUE(all.empty());
        continue;
      }
      ASSERT_EQ(all.size(), ranks());
      for (std::size_t r = 0; r < ranks(); ++r) {
        EXPECT_TRUE(all[r] == text_of(static_cast<int>(r), r * step)) << "rank " << r;
      }
    }
  }
}

TEST(World, ScattersTheRootsItems) {
  for (int root = 0; root < world().size(); ++root) {
    std::vector<std::string> items;
    for (std::size_t r = 0; r < ranks(); ++r) {
      items.push_back(text_of(static_cast<int>(r), r % 2 == 0 ? 500000 * r : 7));
    }
    const auto item =
        world().scatter(world().rank() == root ? items : std::vector<std::string>(), root);
    EXPECT_TRUE(item == items[own_rank()]);
  }
}

TEST(World, RefusesRootsAndSizesThatCannotWork) {
  EXPECT_THROW(world().broadcast("x", world().size()), CommError);
  EXPECT_THROW(world().gather("x", -1), CommError);
  EXPECT_THROW(world().scatter({}, world().size()), CommError);
  if (world().rank() == 0) {
    EXPECT_THROW(world().scatter(std::vector<std::string>(ranks() + 1), 0), CommError);
  }
  world().barrier();
}

TEST(World, IsThereOnlyOnce) { EXPECT_THROW(World(nullptr, nullptr), CommError); }

TEST(World, WaitingRanksSleep) {
  if (world().size() == 1) GTEST_SKIP() << "nobody to wait for";
  world().barrier();
  if (world().rank() == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(400));
    world().barrier();
    return;
  }
  const auto cpu_seconds = [] {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  };
  const double before = cpu_seconds();
  world().barrier();
  EXPECT_LT(cpu_seconds() - before, 0.2) << "the wait of 0.4 s burnt a core";
}

TEST(AllOrNone, ReturnsWhenEveryStepSucceeds) {
  int steps = 0;
  world().all_or_none([&] { ++steps; });
  EXPECT_EQ(steps, 1);
}

TEST(AllOrNone, TheLowestFailingRankKeepsItsErrorAndAllOthersFollow) {
  const int last = world().size() - 1;
  for (int lowest = 0; lowest <= last; ++lowest) {
    const auto step = [&] {
      if (world().rank() >= lowest) throw CheckpointError("rank " + std::to_string(world().rank()));
    };
    if (world().rank() == lowest) {
      try {
        world().all_or_none(step);
        FAIL() << "no exception";
      } catch (const CheckpointError& e) {
        EXPECT_EQ(std::string(e.what()), "rank " + std::to_string(lowest));
      }
    } else {
      EXPECT_THROW(world().all_or_none(step), PeerError);
    }
  }
}

TEST(AllOrNone, ARankThatFailedSaysWhyWhileOthersAreStillAtWork) {
  if (world().size() == 1) GTEST_SKIP() << "waits for nobody";
  const bool fails = world().rank() == 0;
  testing::internal::CaptureStderr();
  const auto step = [&] {
    if (fails) throw IoError("/disk: no space left");
    std::this_thread::sleep_for(std::chrono::seconds(3));
  };
  if (fails) {
    EXPECT_THROW(world().all_or_none(step), IoError);
  } else {
    EXPECT_THROW(world().all_or_none(step), PeerError);
  }
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(said.find("/disk: no space left") != std::string::npos, fails) << said;
  testing::internal::CaptureStderr();
  EXPECT_THROW(world().all_or_none([] { throw IoError("/disk: again"); }), Error);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "") << "all failed at once";
}

TEST(AllOrNone, TurnsForeignExceptionsIntoErrors) {
  const std::vector<std::pair<std::function<void()>, std::string>> steps = {
      {[] { throw std::bad_alloc(); }, "memory"},
      {[] { throw std::out_of_range("no such key"); }, "no such key"},
      {[] { throw 3; }, "unknown type"}};
  for (const auto& [step, text] : steps) {
    try {
      world().all_or_none([&step = step] {
        if (world().rank() == world().size() - 1) step();
      });
      FAIL() << "no exception";
    } catch (const PeerError&) {
      EXPECT_NE(world().rank(), world().size() - 1);
    } catch (const Error& e) {
      EXPECT_EQ(world().rank(), world().size() - 1);
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  }
}

TEST(AllOrNone, InsideAnotherOneStillTellsTheFirstError) {
  const int failing = world().size() - 1;
  const auto nested = [&] {
    world().all_or_none([&] {
      if (world().rank() == failing) throw ConfigError("the reason");
    });
  };
  if (world().rank() == failing) {
    EXPECT_THROW(world().all_or_none(nested), ConfigError);
  } else {
    EXPECT_THROW(world().all_or_none(nested), PeerError);
  }
}

/// Block r of `blocks` as rank r sends it.
void fill(std::byte* block, std::size_t bytes, std::size_t from, std::size_t to) {
  for (std::size_t i = 0; i < bytes; ++i)
    block[i] = static_cast<std::byte>(random_bits(from, to, i));
}

std::size_t differing(const std::byte* block, std::size_t bytes, std::size_t from, std::size_t to) {
  std::vector<std::byte> expected(bytes);
  fill(expected.data(), bytes, from, to);
  std::size_t count = 0;
  for (std::size_t i = 0; i < bytes; ++i) count += block[i] != expected[i];
  return count;
}

struct Shape {
  std::size_t bytes;
  std::size_t piece_bytes;
};
const std::vector<Shape> kShapes = {
    {0, 64},       {1, 64},        {63, 64},
    {64, 64},      {65, 64},       {1000, 7},
    {100003, 999}, {100003, 4096}, {3000001, MpiCommunicator::kPieceBytes}};

TEST(MpiCommunicator, AllGathersInPlaceAndOutOfPlaceInPiecesOfAnySize) {
  CpuStream stream("gathers");
  for (const Shape& shape : kShapes) {
    MpiCommunicator communicator(world(), world().hosts(), shape.piece_bytes);
    for (bool in_place : {true, false}) {
      constexpr std::size_t kGuard = 32;
      std::vector<std::byte> recv(shape.bytes * ranks() + kGuard, std::byte{0xA5});
      std::vector<std::byte> send(shape.bytes + 1);
      std::byte* own = in_place ? recv.data() + own_rank() * shape.bytes : send.data();
      fill(own, shape.bytes, own_rank(), 0);
      communicator.all_gather(own, recv.data(), shape.bytes, stream);
      stream.synchronize();
      for (std::size_t r = 0; r < ranks(); ++r) {
        EXPECT_EQ(differing(recv.data() + r * shape.bytes, shape.bytes, r, 0), 0u)
            << shape.bytes << " in pieces of " << shape.piece_bytes << ", in place: " << in_place;
      }
      EXPECT_EQ(std::count(recv.end() - kGuard, recv.end(), std::byte{0xA5}),
                std::ptrdiff_t{kGuard});
    }
  }
}

TEST(MpiCommunicator, AllToAllSendsBlockRToRankR) {
  CpuStream stream("exchange");
  for (const Shape& shape : kShapes) {
    MpiCommunicator communicator(world(), world().hosts(), shape.piece_bytes);
    std::vector<std::byte> send(shape.bytes * ranks() + 1);
    std::vector<std::byte> recv(shape.bytes * ranks() + 1);
    for (std::size_t r = 0; r < ranks(); ++r)
      fill(send.data() + r * shape.bytes, shape.bytes, own_rank(), r);
    communicator.all_to_all(send.data(), recv.data(), shape.bytes, stream);
    stream.synchronize();
    for (std::size_t r = 0; r < ranks(); ++r) {
      EXPECT_EQ(differing(recv.data() + r * shape.bytes, shape.bytes, r, own_rank()), 0u)
          << shape.bytes << " in pieces of " << shape.piece_bytes;
    }
  }
}

TEST(MpiCommunicator, KeepsItsPlaceInTheOrderOfStreams) {
  // A slow producer on another stream, the gather after its event, a consumer after the gather.
  auto device = make_cpu_device();
  CpuStream compute("compute");
  CpuStream gathers("gathers");
  auto communicator = world().make_cpu_communicator();
  auto produced = device->make_event();
  auto gathered = device->make_event();
  std::vector<int> values(ranks(), -1);
  std::vector<int> seen;
  for (int round = 0; round < 20; ++round) {
    compute.enqueue([&, round] {
      std::this_thread::sleep_for(std::chrono::microseconds(200 * ((world().rank() + round) % 3)));
      std::fill(values.begin(), values.end(), -1);
      values[own_rank()] = 1000 * round + world().rank();
    });
    compute.record(*produced);
    gathers.wait(*produced);
    communicator->all_gather(&values[own_rank()], values.data(), sizeof(int), gathers);
    gathers.record(*gathered);
    compute.wait(*gathered);
    compute.enqueue([&] { seen.insert(seen.end(), values.begin(), values.end()); });
  }
  compute.synchronize();
  ASSERT_EQ(seen.size(), 20 * ranks());
  for (std::size_t i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(seen[i], static_cast<int>(1000 * (i / ranks()) + i % ranks()));
  }
}

TEST(MpiCommunicator, WorksBesideAnotherOneAndTheControlCalls) {
  CpuStream first("first");
  CpuStream second("second");
  auto communicator_a = world().make_cpu_communicator();
  auto communicator_b = world().make_cpu_communicator();
  constexpr std::size_t kBytes = 200000;
  std::vector<std::byte> a(kBytes * ranks());
  std::vector<std::byte> b(kBytes * ranks());
  fill(a.data() + own_rank() * kBytes, kBytes, own_rank(), 1);
  fill(b.data() + own_rank() * kBytes, kBytes, own_rank(), 2);
  for (int round = 0; round < 10; ++round) {
    // Each rank enqueues them in another order: they are independent.
    for (int i = 0; i < 2; ++i) {
      const bool on_a = (i + world().rank()) % 2 == 0;
      auto& blocks = on_a ? a : b;
      (on_a ? communicator_a : communicator_b)
          ->all_gather(blocks.data() + own_rank() * kBytes, blocks.data(), kBytes,
                       on_a ? first : second);
    }
    EXPECT_EQ(world().all_gather(round), std::vector<int>(ranks(), round));
  }
  first.synchronize();
  second.synchronize();
  for (std::size_t r = 0; r < ranks(); ++r) {
    EXPECT_EQ(differing(a.data() + r * kBytes, kBytes, r, 1), 0u);
    EXPECT_EQ(differing(b.data() + r * kBytes, kBytes, r, 2), 0u);
  }
}

TEST(MpiCommunicator, MayGoBeforeItsLastCallIsDone) {
  CpuStream stream("gathers");
  std::vector<int> values(ranks(), -1);
  const int own = world().rank();
  {
    auto communicator = world().make_cpu_communicator();
    stream.enqueue([] { std::this_thread::sleep_for(std::chrono::milliseconds(10)); });
    communicator->all_gather(&own, values.data(), sizeof(own), stream);
  }
  stream.synchronize();
  for (std::size_t r = 0; r < ranks(); ++r) EXPECT_EQ(values[r], static_cast<int>(r));
}

TEST(MpiCommunicator, RefusesForeignStreamsBadPiecesAndAllToAllInPlace) {
  class ForeignStream final : public Stream {
    void record(Event&) override {}
    void wait(const Event&) override {}
    void enqueue(std::function<void()>) override {}
    void synchronize() override {}
  };
  ForeignStream foreign;
  CpuStream stream("stream");
  MpiCommunicator communicator(world(), world().hosts());
  int value = 0;
  std::vector<int> values(ranks());
  EXPECT_THROW(communicator.all_gather(&value, values.data(), sizeof(int), foreign), Error);
  EXPECT_THROW(communicator.all_to_all(&value, values.data(), sizeof(int), foreign), Error);
  EXPECT_THROW(communicator.all_to_all(values.data(), values.data(), sizeof(int), stream), Error);
  EXPECT_THROW(MpiCommunicator(world(), world().hosts(), 0), Error);
  EXPECT_THROW(MpiCommunicator(world(), world().hosts(), std::size_t{INT_MAX} + 1), Error);
}

}  // namespace
}  // namespace zi::test
