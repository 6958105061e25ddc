#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/nccl_communicator.h"
#include "mpi_world.h"
#include "zero_infer/cuda_backend.h"
#include "zero_infer/error.h"
#include "zero_infer/nccl.h"
#include "zero_infer/random.h"

namespace zi::test {
namespace {

std::size_t ranks() { return static_cast<std::size_t>(world().size()); }
std::size_t own_rank() { return static_cast<std::size_t>(world().rank()); }

constexpr std::size_t kGuard = 64;
constexpr std::byte kGuardByte{0xA5};

/// What rank `from` sends to rank `to` (an all-gather has one block for all).
std::vector<std::byte> block(std::size_t bytes, std::uint64_t seed, std::size_t from,
                             std::size_t to = 0) {
  std::vector<std::byte> data(bytes);
  const std::uint64_t stream = from << 8 | to;
  for (std::size_t i = 0; i < bytes; i += 8) {
    const std::uint64_t bits = random_bits(seed, stream, i);
    for (std::size_t b = 0; b < std::min<std::size_t>(8, bytes - i); ++b) {
      data[i + b] = static_cast<std::byte>(bits >> (8 * b));
    }
  }
  return data;
}

/// Every rank has a GPU of its own. The communicator's variants are the tests' parameter.
class Nccl : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    std::string why;
    const int count = cuda_device_count(&why);
    if (count < world().size()) {
      GTEST_SKIP() << count << " GPUs for " << world().size() << " ranks " << why;
    }
    device = make_cuda_device(world().local_rank());
    if (GetParam() && !NcclCommunicator::copy_engine_obstacle(world()).empty()) {
      GTEST_SKIP() << NcclCommunicator::copy_engine_obstacle(world());
    }
    communicator = make(GetParam());
    stream = device->make_stream("gathers");
  }
  void TearDown() override {
    if (communicator != nullptr) communicator->check();
    EXPECT_EQ(failures, 0);
  }

  std::unique_ptr<NcclCommunicator> make(bool copy_engine) {
    return std::make_unique<NcclCommunicator>(
        world(), *device,
        NcclCommunicator::Options{copy_engine, [this](const std::string&) { ++failures; }});
  }

  /// Memory of both kinds: where != 0 is the communicator's own.
  Buffer allocate(std::size_t bytes, int where) {
    return where != 0 ? communicator->allocate(*device, bytes) : device->allocate(bytes);
  }

  void upload(void* to, const std::vector<std::byte>& data) {
    device->copy(to, data.data(), data.size(), *stream);
    stream->synchronize();
  }
  std::vector<std::byte> download(const void* from, std::size_t bytes) {
    std::vector<std::byte> data(bytes);
    device->copy(data.data(), from, bytes, *stream);
    stream->synchronize();
    return data;
  }
  bool guarded(const std::byte* at) {
    return download(at, kGuard) == std::vector<std::byte>(kGuard, kGuardByte);
  }

  std::atomic<int> failures{0};
  std::unique_ptr<Device> device;
  std::unique_ptr<NcclCommunicator> communicator;
  std::unique_ptr<Stream> stream;
};

const std::vector<std::size_t> kSizes = {
    1, 7, 511, 4096, 4097, 100003, std::size_t{1} << 20, (std::size_t{8} << 20) + 24};

TEST_P(Nccl, UsesCopyEnginesWhereTheyAreAskedFor) {
  if (world().size() == 1) GTEST_SKIP() << "no gathers";
  EXPECT_EQ(communicator->copy_engine(), GetParam()) << "refused: needs peer access and cuMem";
}

TEST_P(Nccl, AllGathersInPlaceAndOutOfPlaceAtAnySize) {
  for (int where : {0, 1}) {
    const Buffer send = allocate(kSizes.back(), where);
    const Buffer recv = allocate(kSizes.back() * ranks() + kGuard, where);
    std::uint64_t seed = 1;
    for (std::size_t bytes : kSizes) {
      for (bool in_place : {true, false, true}) {
        ++seed;
        std::byte* const guard = recv.data() + bytes * ranks();
        upload(recv.data(), std::vector<std::byte>(bytes * ranks() + kGuard, kGuardByte));
        std::byte* const own = in_place ? recv.data() + own_rank() * bytes : send.data();
        upload(own, block(bytes, seed, own_rank()));
        communicator->all_gather(own, recv.data(), bytes, *stream);
        for (std::size_t r = 0; r < ranks(); ++r) {
          EXPECT_TRUE(download(recv.data() + r * bytes, bytes) == block(bytes, seed, r))
              << bytes << " bytes, block " << r << ", in place: " << in_place << ", " << where;
        }
        EXPECT_TRUE(guarded(guard)) << bytes;
      }
    }
  }
}

TEST_P(Nccl, GathersIntoSlotsOfOneAllocationFromAShardOfAnother) {
  constexpr std::size_t kBytes = 1000448;  // a multiple of 256, not of a page
  constexpr std::size_t kSlots = 3;
  const std::size_t slot_bytes = (kBytes * ranks() + 4095) / 4096 * 4096;
  const Buffer slots = communicator->allocate(*device, kSlots * slot_bytes);
  const Buffer resident = device->allocate(kBytes);
  const Buffer resident_window = communicator->allocate(*device, kBytes);
  for (std::uint64_t trip = 0; trip < 12; ++trip) {
    std::byte* const slot = slots.data() + trip % kSlots * slot_bytes;
    // In place, from plain memory, from the communicator's.
    std::byte* const own = trip % 3 == 0   ? slot + own_rank() * kBytes
                           : trip % 3 == 1 ? resident.data()
                                           : resident_window.data();
    upload(own, block(kBytes, trip, own_rank()));
    communicator->all_gather(own, slot, kBytes, *stream);
    for (std::size_t r = 0; r < ranks(); ++r) {
      EXPECT_TRUE(download(slot + r * kBytes, kBytes) == block(kBytes, trip, r))
          << "trip " << trip << ", block " << r;
    }
  }
}

TEST_P(Nccl, AllToAllSendsBlockRToRankR) {
  for (int where : {0, 1}) {
    const Buffer send = allocate(kSizes.back() * ranks(), where);
    const Buffer recv = allocate(kSizes.back() * ranks() + kGuard, where);
    for (std::size_t bytes : kSizes) {
      for (std::size_t r = 0; r < ranks(); ++r) {
        upload(send.data() + r * bytes, block(bytes, bytes, own_rank(), r));
      }
      upload(recv.data(), std::vector<std::byte>(bytes * ranks() + kGuard, kGuardByte));
      communicator->all_to_all(send.data(), recv.data(), bytes, *stream);
      for (std::size_t r = 0; r < ranks(); ++r) {
        EXPECT_TRUE(download(recv.data() + r * bytes, bytes) == block(bytes, bytes, r, own_rank()))
            << bytes << " bytes, block " << r << ", " << where;
      }
      EXPECT_TRUE(guarded(recv.data() + bytes * ranks())) << bytes;
    }
  }
}

TEST_P(Nccl, KeepsItsPlaceInTheOrderOfStreams) {
  // Upload on one stream, gather after its event on another, download after the gather, and the
  // next upload after that; only the end is waited for. A peer that is ahead must not write yet.
  constexpr std::size_t kBytes = 300000;
  constexpr std::size_t kRounds = 20;
  const auto compute = device->make_stream("compute");
  const auto produced = device->make_event();
  const auto gathered = device->make_event();
  const Buffer blocks = communicator->allocate(*device, kBytes * ranks());
  const Buffer staging = device->allocate_pinned(kBytes * kRounds);
  const Buffer seen = device->allocate_pinned(kBytes * ranks() * kRounds);
  for (std::size_t round = 0; round < kRounds; ++round) {
    std::ranges::copy(block(kBytes, round, own_rank()), staging.data() + round * kBytes);
  }
  for (std::size_t round = 0; round < kRounds; ++round) {
    std::byte* const own = blocks.data() + own_rank() * kBytes;
    device->copy(own, staging.data() + round * kBytes, kBytes, *compute);
    compute->record(*produced);
    stream->wait(*produced);
    communicator->all_gather(own, blocks.data(), kBytes, *stream);
    stream->record(*gathered);
    compute->wait(*gathered);
    device->copy(seen.data() + round * kBytes * ranks(), blocks.data(), kBytes * ranks(), *compute);
  }
  compute->synchronize();
  for (std::size_t round = 0; round < kRounds; ++round) {
    for (std::size_t r = 0; r < ranks(); ++r) {
      const std::byte* const at = seen.data() + (round * ranks() + r) * kBytes;
      EXPECT_TRUE(std::equal(at, at + kBytes, block(kBytes, round, r).begin()))
          << "round " << round << ", block " << r;
    }
  }
}

TEST_P(Nccl, GathersMoreThanTwoGiBFromEachRank) {
  // A multiple of 8 but of no page; words that are their own position.
  constexpr std::size_t kBytes = (std::size_t{2100} << 20) + 4104;
  constexpr std::size_t kPieceBytes = std::size_t{64} << 20;
  const char leave_out = device->memory().free_bytes < kBytes * ranks() + (std::size_t{2} << 30);
  const std::vector<char> left_out = world().all_gather(leave_out);
  if (std::ranges::find(left_out, 1) != left_out.end()) GTEST_SKIP() << "not enough memory";
  const Buffer blocks = communicator->allocate(*device, kBytes * ranks());
  const Buffer staging = device->allocate_pinned(kPieceBytes);
  auto* const words = staging.as<std::uint64_t>();
  const auto for_each_piece = [&](std::size_t r, const auto& visit) {
    for (std::size_t offset = 0; offset < kBytes; offset += kPieceBytes) {
      visit(blocks.data() + r * kBytes + offset, r << 40 | offset,
            std::min(kPieceBytes, kBytes - offset));
    }
  };
  for_each_piece(own_rank(), [&](std::byte* at, std::uint64_t first, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes / 8; ++i) words[i] = mix64(first + 8 * i);
    device->copy(at, words, bytes, *stream);
    stream->synchronize();
  });
  communicator->all_gather(blocks.data() + own_rank() * kBytes, blocks.data(), kBytes, *stream);
  std::size_t wrong = 0;
  for (std::size_t r = 0; r < ranks(); ++r) {
    for_each_piece(r, [&](std::byte* at, std::uint64_t first, std::size_t bytes) {
      device->copy(words, at, bytes, *stream);
      stream->synchronize();
      for (std::size_t i = 0; i < bytes / 8; ++i) wrong += words[i] != mix64(first + 8 * i);
    });
  }
  EXPECT_EQ(wrong, 0u) << "words";
}

TEST_P(Nccl, DoesNothingForNoBytes) {
  communicator->all_gather(nullptr, nullptr, 0, *stream);
  communicator->all_to_all(nullptr, nullptr, 0, *stream);
  stream->synchronize();
  EXPECT_EQ(communicator->allocate(*device, 0).bytes(), 0u);
}

TEST_P(Nccl, GivesMemoryAlignedToPagesAndTakesItBack) {
  constexpr std::size_t kBytes = (std::size_t{1} << 30) + 4096;
  const auto gather_once = [&] {
    const Buffer buffer = communicator->allocate(*device, kBytes);
    EXPECT_EQ(buffer.bytes(), kBytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 4096, 0u);
    communicator->all_gather(buffer.data() + own_rank() * 1024, buffer.data(), 1024, *stream);
    stream->synchronize();
    world().barrier();
  };
  gather_once();
  world().barrier();
  const std::size_t before = device->memory().free_bytes;
  for (int i = 0; i < 4; ++i) gather_once();
  world().barrier();  // peers that map a rank's memory hold it
  EXPECT_GE(device->memory().free_bytes + (std::size_t{128} << 20), before);
}

TEST_P(Nccl, RefusesOnAllRanksWhatOneCannotHaveAndGoesOn) {
  const std::size_t too_much = 2 * device->memory().total_bytes;
  if (world().rank() == 0) {
    EXPECT_THROW(communicator->allocate(*device, too_much), ConfigError);
  } else {
    EXPECT_THROW(communicator->allocate(*device, too_much), PeerError);
  }
  EXPECT_EQ(communicator->copy_engine(), GetParam() && world().size() > 1);
  const Buffer blocks = communicator->allocate(*device, 1000 * ranks());
  upload(blocks.data() + own_rank() * 1000, block(1000, 5, own_rank()));
  communicator->all_gather(blocks.data() + own_rank() * 1000, blocks.data(), 1000, *stream);
  for (std::size_t r = 0; r < ranks(); ++r) {
    EXPECT_TRUE(download(blocks.data() + r * 1000, 1000) == block(1000, 5, r));
  }
}

TEST_P(Nccl, WorksInSequenceAndBesideAnotherOne) {
  constexpr std::size_t kBytes = 70000;
  const auto gathers = [&](NcclCommunicator& one, std::uint64_t seed) {
    const Buffer blocks = one.allocate(*device, kBytes * ranks());
    upload(blocks.data() + own_rank() * kBytes, block(kBytes, seed, own_rank()));
    one.all_gather(blocks.data() + own_rank() * kBytes, blocks.data(), kBytes, *stream);
    for (std::size_t r = 0; r < ranks(); ++r) {
      EXPECT_TRUE(download(blocks.data() + r * kBytes, kBytes) == block(kBytes, seed, r));
    }
  };
  for (std::uint64_t i = 0; i < 3; ++i) {
    const auto other = make(i % 2 == 0);
    gathers(*other, 10 + i);
    gathers(*communicator, 20 + i);
    gathers(*other, 30 + i);
  }
  gathers(*communicator, 40);
}

TEST_P(Nccl, SurvivesABufferThatOutlivesIt) {
  Buffer buffer = communicator->allocate(*device, std::size_t{1} << 20);
  communicator.reset();
  buffer = Buffer();
  communicator = make(GetParam());
}

TEST_P(Nccl, RefusesForeignStreamsAndAllToAllInPlace) {
  class ForeignStream final : public Stream {
    void record(Event&) override {}
    void wait(const Event&) override {}
    void enqueue(std::function<void()>) override {}
    void synchronize() override {}
  };
  ForeignStream foreign;
  const Buffer blocks = device->allocate(64 * ranks());
  EXPECT_THROW(communicator->all_gather(blocks.data(), blocks.data(), 64, foreign), Error);
  EXPECT_THROW(communicator->all_to_all(blocks.data(), blocks.data(), 64, *stream), Error);
}

TEST_P(Nccl, TrialsKeepOneWayForAllRanks) {
  communicator.reset();
  for (Gather gather : {Gather::kFastest, Gather::kPlain, Gather::kCopyEngine}) {
    const auto made = make_nccl_communicator(
        world(), *device, std::size_t{32} << 20, [this](const std::string&) { ++failures; },
        gather);
    auto& kept = dynamic_cast<NcclCommunicator&>(*made);
    const char own = kept.copy_engine() ? 1 : 0;
    EXPECT_EQ(world().all_gather(own), std::vector<char>(ranks(), own));
    EXPECT_FALSE(gather == Gather::kPlain && kept.copy_engine());
    const Buffer blocks = made->allocate(*device, 1000 * ranks());
    upload(blocks.data() + own_rank() * 1000, block(1000, 9, own_rank()));
    made->all_gather(blocks.data() + own_rank() * 1000, blocks.data(), 1000, *stream);
    for (std::size_t r = 0; r < ranks(); ++r) {
      EXPECT_TRUE(download(blocks.data() + r * 1000, 1000) == block(1000, 9, r));
    }
    made->check();
  }
}

TEST_P(Nccl, LeftByAnExceptionDoesNotWaitForTheOthers) {
  // Every rank throws, at a time of its own, with nothing in flight.
  const auto leave = [&] {
    const auto own = std::make_unique<NcclCommunicator>(
        world(), *device, NcclCommunicator::Options{GetParam(), nullptr});
    const Buffer blocks = own->allocate(*device, 1000 * ranks());
    own->all_gather(blocks.data() + own_rank() * 1000, blocks.data(), 1000, *stream);
    stream->synchronize();
    for (std::size_t r = 0; r < own_rank(); ++r) world().barrier();
    throw IoError("as asked");
  };
  EXPECT_THROW(leave(), IoError);
  for (std::size_t r = own_rank(); r < ranks(); ++r) world().barrier();
}

INSTANTIATE_TEST_SUITE_P(Gathers, Nccl, testing::Bool(), [](const auto& variant) {
  return std::string(variant.param ? "CopyEngine" : "Plain");
});

TEST(NcclSetup, RefusesRanksThatShareAGpuWithOneLine) {
  std::string why;
  if (cuda_device_count(&why) == 0) GTEST_SKIP() << why;
  if (world().size() == 1) GTEST_SKIP() << "nobody to share with";
  if (pretended_gpus() > 0) GTEST_SKIP() << "asked to share";
  const auto device = make_cuda_device(0);
  try {
    const NcclCommunicator communicator(world(), *device, {});
    FAIL() << "no exception";
  } catch (const ConfigError& e) {
    EXPECT_EQ(world().rank(), 0);
    EXPECT_NE(std::string(e.what()).find("ranks 0 and 1 share GPU"), std::string::npos) << e.what();
  } catch (const PeerError&) {
    EXPECT_NE(world().rank(), 0);
  }
}

}  // namespace
}  // namespace zi::test
