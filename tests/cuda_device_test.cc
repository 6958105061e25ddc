// The CUDA device and what offload builds on it: streams, events, pinned memory, the tiers' stores
// and the fetcher, with the same suites as on the CPU backend.

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <future>
#include <numeric>
#include <thread>
#include <vector>

#include "backend/cuda/cublas_library.h"
#include "offload/layer_fetcher.h"
#include "offload/resident_stores.h"
#include "zero_infer/bytes.h"
#include "zero_infer/cuda_backend.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

struct CudaDeviceTest : testing::Test {
  void SetUp() override {
    std::string why;
    if (cuda_device_count(&why) == 0) GTEST_SKIP() << "no GPU to test on: " << why;
    device = make_cuda_device(0);
    stream = device->make_stream("compute");
  }
  std::vector<std::byte> bytes(std::size_t count, std::uint64_t seed) {
    std::vector<std::byte> out(count);
    for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::byte>(mix64(seed ^ i));
    return out;
  }
  std::vector<std::byte> download(const void* from, std::size_t count) {
    std::vector<std::byte> out(count);
    device->copy(out.data(), from, count, *stream);
    stream->synchronize();
    return out;
  }
  std::unique_ptr<Device> device;
  std::unique_ptr<Stream> stream;
};

TEST(CublasLibrary, IsLoadedWithEveryFunctionAlsoWithoutAGpu) {
  const CublasLibrary& cublas = cublas_library();
  EXPECT_STREQ(cublas.status_string(CUBLAS_STATUS_SUCCESS), "success");
  EXPECT_NE(cublas.gemm, nullptr);
  EXPECT_NE(cublas.gemm_strided_batched, nullptr);
}

TEST(PretendedGpus, AreANumberOrRefusedByName) {
  const char* const variable = "ZERO_INFER_PRETEND_GPUS";
  const char* const set = std::getenv(variable);
  const std::string before = set != nullptr ? set : "";
  ::unsetenv(variable);
  EXPECT_EQ(pretended_gpus(), 0);
  ::setenv(variable, "3", 1);
  EXPECT_EQ(pretended_gpus(), 3);
  for (const char* const wrong : {"", "0", "-1", "two", "2,", "99999999999"}) {
    ::setenv(variable, wrong, 1);
    try {
      pretended_gpus();
      ADD_FAILURE() << wrong << " was taken";
    } catch (const ConfigError& e) {
      EXPECT_NE(std::string(e.what()).find(variable), std::string::npos) << e.what();
    }
  }
  if (set != nullptr) {
    ::setenv(variable, before.c_str(), 1);
  } else {
    ::unsetenv(variable);
  }
}

TEST_F(CudaDeviceTest, CopiesInEveryDirectionThroughPinnedMemoryAndZeroes) {
  const std::size_t count = (std::size_t{5} << 20) + 3;
  const auto want = bytes(count, 1);
  const Buffer pinned = device->allocate_pinned(count);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(pinned.data()) % kPageBytes, 0u);
  std::memcpy(pinned.data(), want.data(), count);
  const Buffer first = device->allocate(count);
  const Buffer second = device->allocate(count);
  device->copy(first.data(), pinned.data(), count, *stream);
  device->copy(second.data(), first.data(), count, *stream);
  device->zero(first.data(), count, *stream);
  EXPECT_EQ(download(second.data(), count), want);
  EXPECT_EQ(download(first.data(), count), std::vector<std::byte>(count));
}

TEST_F(CudaDeviceTest, PinsFromSeveralThreadsAtOnce) {
  std::vector<Buffer> buffers(6);
  {
    std::vector<std::jthread> threads;
    for (Buffer& buffer : buffers) {
      threads.emplace_back(
          [&] { buffer = device->allocate_pinned_or_plain(std::size_t{8} << 20); });
    }
  }
  const Buffer to = device->allocate(std::size_t{8} << 20);
  for (const Buffer& buffer : buffers) {
    device->copy(to.data(), buffer.data(), buffer.bytes(), *stream);
  }
  stream->synchronize();
}

TEST_F(CudaDeviceTest, EventsOrderStreamsAndMeasureThem) {
  const std::size_t count = std::size_t{64} << 20;
  const auto other = device->make_stream("copies");
  const auto begin = device->make_event();
  const auto end = device->make_event();
  EXPECT_TRUE(begin->reached()) << "before its first record";
  const Buffer pinned = device->allocate_pinned(count);
  std::memset(pinned.data(), 7, count);
  const Buffer memory = device->allocate(count);
  const Buffer copy = device->allocate(count);
  for (int round = 0; round < 5; ++round) {
    device->zero(memory.data(), count, *stream);
    device->zero(copy.data(), count, *stream);
    stream->record(*begin);
    other->wait(*begin);
    device->copy(memory.data(), pinned.data(), count, *other);
    other->record(*end);
    stream->wait(*end);
    device->copy(copy.data(), memory.data(), count, *stream);
    stream->synchronize();
    EXPECT_TRUE(end->reached());
    const double seconds = device->elapsed_seconds(*begin, *end);
    EXPECT_GT(seconds, static_cast<double>(count) / 1e12);
    EXPECT_LT(seconds, 10);
    const auto got = download(copy.data() + count - 16, 16);
    EXPECT_EQ(got, std::vector<std::byte>(16, std::byte{7}));
  }
}

TEST_F(CudaDeviceTest, CopiesOfAStreamOfOwnCopiesGoBesideThoseThatWaitInAnotherStream) {
  constexpr std::size_t kBytes = std::size_t{4} << 20;
  const auto engine = device->make_stream("copies"), own = device->make_stream_of_own_copies("own");
  const auto gate = device->make_stream("gate");
  const auto opened = device->make_event(), copied = device->make_event();
  const Buffer pinned = device->allocate_pinned(kBytes), other = device->allocate_pinned(kBytes);
  const Buffer a = device->allocate(kBytes), b = device->allocate(kBytes);
  for (std::size_t i = 0; i < kBytes; ++i) pinned.data()[i] = static_cast<std::byte>(i * 7 + i / 5);
  // A copy that is enqueued first and cannot begin: its stream waits for one that waits for this
  // thread.
  std::promise<void> may_go;
  std::future<void> going = may_go.get_future();
  ASSERT_EQ(cudaLaunchHostFunc(
                static_cast<cudaStream_t>(cuda_stream_handle(*gate)),
                [](void* future) { static_cast<std::future<void>*>(future)->wait(); }, &going),
            cudaSuccess);
  gate->record(*opened);
  engine->wait(*opened);
  device->copy(a.data(), other.data(), kBytes, *engine);
  for (const std::size_t bytes : {kBytes, std::size_t{4096}, std::size_t{16}, std::size_t{48}}) {
    device->zero(b.data(), kBytes, *own);
    device->copy(b.data(), pinned.data(), bytes, *own);
    own->record(*copied);
    const auto late = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!copied->reached() && std::chrono::steady_clock::now() < late) std::this_thread::yield();
    EXPECT_TRUE(copied->reached()) << bytes;
  }
  may_go.set_value();
  engine->synchronize();
  for (const std::size_t bytes : {kBytes, std::size_t{16}, std::size_t{48}, std::size_t{17}}) {
    device->copy(b.data(), pinned.data(), bytes, *own);
    own->synchronize();
    EXPECT_EQ(download(b.data(), bytes),
              std::vector<std::byte>(pinned.data(), pinned.data() + bytes));
  }
}

TEST_F(CudaDeviceTest, TasksSeeWhatWasEnqueuedBeforeThemAndAreSeenByWhatComesLater) {
  constexpr std::size_t kCount = std::size_t{1} << 20;
  const auto tasks = device->make_stream("tasks");
  const auto sent = device->make_event();
  const auto answered = device->make_event();
  const Buffer memory = device->allocate(kCount);
  const Buffer pinned = device->allocate_pinned(kCount);
  std::memset(pinned.data(), 1, kCount);
  device->copy(memory.data(), pinned.data(), kCount, *stream);
  constexpr int kRounds = 50;
  for (int round = 0; round < kRounds; ++round) {
    device->copy(pinned.data(), memory.data(), kCount, *stream);
    stream->record(*sent);
    tasks->wait(*sent);
    tasks->enqueue([&] {
      for (std::byte& b : pinned.span()) b = std::byte(std::to_integer<unsigned>(b) + 1);
    });
    tasks->record(*answered);
    stream->wait(*answered);
    device->copy(memory.data(), pinned.data(), kCount, *stream);
  }
  EXPECT_EQ(download(memory.data(), kCount),
            std::vector<std::byte>(kCount, std::byte{kRounds + 1}));
  tasks->synchronize();
}

TEST_F(CudaDeviceTest, ATaskThatThrowsFailsItsStreamAndLaterTasksAreSkipped) {
  int ran = 0;
  stream->enqueue([&] { ++ran; });
  stream->enqueue([] { throw IoError("a task failed"); });
  stream->enqueue([&] { ++ran; });
  EXPECT_THROW(stream->synchronize(), IoError);
  EXPECT_THROW(stream->synchronize(), IoError) << "every time";
  EXPECT_EQ(ran, 1);
}

TEST_F(CudaDeviceTest, GivesStreamsThePriorityThatIsAskedForWhateverTheirNames) {
  int least = 0, greatest = 0;
  ASSERT_EQ(cudaDeviceGetStreamPriorityRange(&least, &greatest), cudaSuccess);
  ASSERT_NE(least, greatest);
  const auto priority_of = [](Stream& of) {
    int priority = 0;
    EXPECT_EQ(cudaStreamGetPriority(static_cast<cudaStream_t>(cuda_stream_handle(of)), &priority),
              cudaSuccess);
    return priority;
  };
  for (const char* const name : {"gather", "compute"}) {
    EXPECT_EQ(priority_of(*device->make_stream(name)), least) << name;
    EXPECT_EQ(priority_of(*device->make_stream(name, StreamPriority::kFirst)), greatest) << name;
  }
  EXPECT_FALSE(device->is_host());
}

TEST_F(CudaDeviceTest, RefusesMoreMemoryThanThereIsWithTheNumbers) {
  const MemoryInfo info = device->memory();
  EXPECT_GT(info.free_bytes, 0u);
  EXPECT_LE(info.free_bytes, info.total_bytes);
  try {
    device->allocate(info.total_bytes * 2);
    FAIL() << "twice the memory of the GPU was given";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("is free on"), std::string::npos) << error.what();
  }
  EXPECT_NO_THROW(device->allocate(4096)) << "a refused request must not stick";
}

/// Units of one matrix each, on the device or on the host, whose values name unit and place.
TEST_F(CudaDeviceTest, TheFetcherBringsEveryUnitInOrderOverManyPasses) {
  constexpr int kUnits = 7;
  std::vector<PartitionLayout> layouts;
  for (int u = 0; u < kUnits; ++u) {
    const UnitSpec spec{.name = "unit", .matrices = {{"m", {256 + u, 512}}}, .vectors = {}};
    layouts.emplace_back(spec, DType::kBFloat16, 1);
  }
  std::vector<int> on_device, on_host;
  std::vector<std::size_t> device_sizes, host_sizes;
  for (int u = 0; u < kUnits; ++u) {
    (u % 3 == 0 ? on_device : on_host).push_back(u);
    (u % 3 == 0 ? device_sizes : host_sizes)
        .push_back(layouts[static_cast<std::size_t>(u)].shard_bytes());
  }
  DeviceStore device_store(*device, on_device, device_sizes);
  HostStore host_store(*device, on_host, host_sizes);
  std::vector<std::vector<std::byte>> want;
  std::vector<ShardStore*> stores;
  std::vector<const PartitionLayout*> pointers;
  for (int u = 0; u < kUnits; ++u) {
    pointers.push_back(&layouts[static_cast<std::size_t>(u)]);
    want.push_back(bytes(pointers.back()->shard_bytes(), static_cast<std::uint64_t>(u)));
    if (u % 3 == 0) {
      stores.push_back(&device_store);
      device->copy(device_store.shard(u).data(), want.back().data(), want.back().size(), *stream);
    } else {
      stores.push_back(&host_store);
      std::memcpy(host_store.shard(u).data(), want.back().data(), want.back().size());
    }
  }
  stream->synchronize();
  constexpr int kPasses = 20;
  std::vector<Buffer> kept;
  const auto gathers = device->make_stream("gather", StreamPriority::kFirst);
  LayerFetcher fetcher(*device, nullptr, 0, pointers, stores, 2, *gathers);
  const std::size_t most = layouts.back().shard_bytes();
  const Buffer results = device->allocate(most * kUnits * kPasses);
  for (int pass = 0; pass < kPasses; ++pass) {
    fetcher.run_pass(
        [&](int unit, const UnitWeights& weights) {
          const auto at = static_cast<std::size_t>(pass * kUnits + unit) * most;
          device->copy(results.data() + at, weights.data, weights.layout->shard_bytes(), *stream);
        },
        *stream, {.last = pass == kPasses - 1});
  }
  stream->synchronize();
  for (int pass = 0; pass < kPasses; ++pass) {
    for (std::size_t unit = 0; unit < kUnits; ++unit) {
      const auto at = (static_cast<std::size_t>(pass) * kUnits + unit) * most;
      ASSERT_EQ(download(results.data() + at, want[unit].size()), want[unit])
          << "pass " << pass << ", unit " << unit;
    }
  }
}

}  // namespace
}  // namespace zi
