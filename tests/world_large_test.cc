// Gathers beyond 2 GiB for real: 2 ranks, 1.1 GiB each. Slower than the others:
// ZI_TEST_SKIP_LARGE=1 leaves it out.

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "mpi_world.h"
#include "zero_infer/backend.h"
#include "zero_infer/cpu_stream.h"
#include "zero_infer/random.h"

namespace zi::test {
namespace {

TEST(MpiCommunicator, AllGathersAndExchangesMoreThanTwoGiB) {
  const auto ranks = static_cast<std::size_t>(world().size());
  const auto rank = static_cast<std::size_t>(world().rank());
  // A multiple of 8 but of no piece size.
  constexpr std::size_t kBytes = (std::size_t{1100} << 20) + 4104;
  auto device = make_cpu_device();
  const char leave_out = std::getenv("ZI_TEST_SKIP_LARGE") != nullptr ||
                         device->memory().free_bytes < 5 * ranks * ranks * kBytes / 2;
  for (char any : world().all_gather(leave_out)) {
    if (any != 0)
      GTEST_SKIP() << "ZI_TEST_SKIP_LARGE is set, or there is not enough free memory (11.6 GB)";
  }
  Buffer slot = device->allocate(ranks * kBytes);
  auto* words = slot.as<std::uint64_t>();
  constexpr std::size_t kWords = kBytes / 8;
  for (std::size_t i = 0; i < kWords; ++i) words[rank * kWords + i] = mix64(rank << 40 | i);
  CpuStream stream("gathers");
  auto communicator = world().make_cpu_communicator();
  communicator->all_gather(slot.data() + rank * kBytes, slot.data(), kBytes, stream);
  stream.synchronize();
  std::size_t wrong = 0;
  for (std::size_t r = 0; r < ranks; ++r) {
    for (std::size_t i = 0; i < kWords; ++i) wrong += words[r * kWords + i] != mix64(r << 40 | i);
  }
  EXPECT_EQ(wrong, 0u) << "words of the gather";

  // Every block of the exchange comes from a gathered slot: block `rank` of rank r.
  Buffer received = device->allocate(ranks * kBytes);
  communicator->all_to_all(slot.data(), received.data(), kBytes, stream);
  stream.synchronize();
  for (std::size_t r = 0; r < ranks; ++r) {
    EXPECT_EQ(std::memcmp(received.data() + r * kBytes, slot.data() + rank * kBytes, kBytes), 0);
  }
}

}  // namespace
}  // namespace zi::test
