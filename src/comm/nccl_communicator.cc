#include "comm/nccl_communicator.h"

#include <fmt/format.h>
#include <nccl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <stop_token>
#include <string_view>
#include <thread>
#include <vector>

#include "backend/cuda/cuda_support.h"
#include "comm/gpu_peers.h"
#include "comm/together.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// Copy engines and ncclAlltoAll.
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 0)
#define ZI_NCCL_HAS_2_28 1
#else
#define ZI_NCCL_HAS_2_28 0
#endif

constexpr std::chrono::milliseconds kWatchInterval{100};
/// Bytes a rank of the first, connecting calls.
constexpr std::size_t kWarmUpBytes = 4096;

std::string nccl_text(ncclResult_t code) {
  std::string text = ncclGetErrorString(code);
  if (code == ncclInProgress) text += "; unset NCCL_COMM_BLOCKING, calls must block here";
  const char* const last = ncclGetLastError(nullptr);
  if (last != nullptr && *last != '\0') text += fmt::format(" ({})", last);
  return text;
}

void check_nccl(ncclResult_t code, const char* function) {
  if (code == ncclSuccess) return;
  throw CommError(fmt::format("{} failed: {}; NCCL_DEBUG=INFO in the environment tells more",
                              function, nccl_text(code)));
}

/// Calls a function of NCCL and checks what it returns: ZI_NCCL(ncclGetVersion, &version).
#define ZI_NCCL(function, ...) check_nccl(function(__VA_ARGS__), #function)

/// For destructors.
void report_nccl(ncclResult_t code, const char* function) {
  if (code != ncclSuccess) log_verbose(fmt::format("{} failed: {}", function, nccl_text(code)));
}

std::string version_text(int code) {
  return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

int library_version() {
  int version = 0;
  ZI_NCCL(ncclGetVersion, &version);
  return version;
}

/// All of NCCL's variables are honoured: where one contradicts what is asked for here, it wins.
std::string nccl_environment() {
  std::string text;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (std::string_view(*variable).starts_with("NCCL_")) text += fmt::format(" {}", *variable);
  }
  return text.empty() ? " none" : text;
}

/// Collective. NCCL itself would fail with an unclear error on some ranks, or hang.
void check_gpus_differ(RankGroup& ranks, int gpu) {
  struct Gpu {
    std::array<char, 16> uuid;
    std::array<char, 32> bus;
  };
  Gpu mine{};
  ranks.all_or_none([&] {
    cudaDeviceProp properties{};
    ZI_CUDA(cudaGetDeviceProperties(&properties, gpu));
    std::memcpy(mine.uuid.data(), properties.uuid.bytes, mine.uuid.size());
    ZI_CUDA(cudaDeviceGetPCIBusId(mine.bus.data(), static_cast<int>(mine.bus.size()), gpu));
  });
  const std::vector<Gpu> all = ranks.all_gather(mine);
  ranks.all_or_none([&] {
    const auto own = static_cast<std::size_t>(ranks.rank());
    for (std::size_t other = own + 1; other < all.size(); ++other) {
      if (all[other].uuid != mine.uuid) continue;
      throw ConfigError(
          fmt::format("ranks {} and {} share GPU {} of {}: every rank needs one of its own; run at "
                      "most -np {} on this host",
                      own, other, mine.bus.data(), ranks.host(), cuda_device_count()));
    }
  });
}

/// Collective. Whether ranks may share GPUs; the environment's word, which must be that of all.
bool ranks_share_gpus(RankGroup& ranks) {
  const std::vector<int> all = ranks.all_gather(pretended_gpus());
  ranks.all_or_none([&] {
    if (std::ranges::all_of(all, [&](int gpus) { return (gpus > 0) == (all.front() > 0); })) return;
    throw ConfigError(
        "ZERO_INFER_PRETEND_GPUS is set for some ranks and not for others; give it to all (mpirun "
        "-x ZERO_INFER_PRETEND_GPUS) or to none");
  });
  return all.front() > 0;
}

/// NCCL refuses ranks of one host that share a GPU, and lets ranks of different hosts do so.
void pretend_hosts_to_nccl(const RankGroup& ranks) {
  ::setenv("NCCL_HOSTID", fmt::format("rank {}", ranks.rank()).c_str(), 1);
  if (ranks.rank() == 0) {
    log_warning(
        fmt::format("ZERO_INFER_PRETEND_GPUS is set: hosts are taken to have {} GPUs, and "
                    "ranks share what they have; for tests, as it is slow",
                    pretended_gpus()));
  }
}

/// Polls for asynchronous errors, which no call and no stream reports.
class Watcher {
 public:
  Watcher(ncclComm_t comm, CommFailure on_failure)
      : comm_(comm),
        on_failure_(std::move(on_failure)),
        thread_([this](std::stop_token stop) { watch(stop); }) {}

  void check() const {
    if (failed()) throw CommError(message_);
  }
  bool failed() const { return failed_.load(std::memory_order_acquire); }

 private:
  void watch(const std::stop_token& stop) {
    std::mutex mutex;
    std::condition_variable_any wake;
    std::unique_lock lock(mutex);
    for (;;) {
      wake.wait_for(lock, stop, kWatchInterval, [] { return false; });
      if (stop.stop_requested()) return;
      ncclResult_t error = ncclSuccess;
      const ncclResult_t asked = ncclCommGetAsyncError(comm_, &error);
      if (asked != ncclSuccess) error = asked;
      if (error == ncclSuccess || error == ncclInProgress) continue;
      message_ = fmt::format("the GPUs' communicator failed: {}", nccl_text(error));
      failed_.store(true, std::memory_order_release);
      if (on_failure_) on_failure_(message_);
      return;
    }
  }

  ncclComm_t comm_;
  CommFailure on_failure_;
  std::string message_;  // written before failed_
  std::atomic<bool> failed_{false};
  std::jthread thread_;  // last: starts after all else is made, stops first
};

/// Shared with the buffers' release functions, so that one that outlives the communicator knows.
struct Handle {
  ncclComm_t comm = nullptr;  // null in a world of one, and once it is gone
};

#if ZI_NCCL_HAS_2_28
void release_window(const Handle& handle, ncclWindow_t window, void* data) {
  // Without its communicator the window is gone as well; the memory is still ours.
  if (window != nullptr && handle.comm != nullptr) {
    report_nccl(ncclCommWindowDeregister(handle.comm, window), "ncclCommWindowDeregister");
  }
  report_nccl(ncclMemFree(data), "ncclMemFree");
}
#endif

}  // namespace

struct NcclCommunicator::State {
  State(RankGroup& all, Device& dev, CommFailure handler)
      : ranks(all), device(dev), on_failure(std::move(handler)) {}
  ~State();

  /// Ranks on other hosts.
  std::size_t away() const { return size - ranks.hosts().beside(ranks.rank()).size(); }

  RankGroup& ranks;
  Device& device;
  CommFailure on_failure;
  int gpu = 0;
  std::size_t rank = 0;
  std::size_t size = 1;
  std::atomic<std::uint64_t> network_bytes = 0;
  bool copy_engine = false;
  bool broken = false;  // a call has failed, or is on its way
  int exceptions_at_start = std::uncaught_exceptions();
  std::shared_ptr<Handle> handle = std::make_shared<Handle>();
  std::unique_ptr<Watcher> watcher;
};

NcclCommunicator::State::~State() {
  const bool lost = broken || (watcher != nullptr && watcher->failed());
  watcher.reset();  // it polls what is destroyed next
  ncclComm_t const comm = std::exchange(handle->comm, nullptr);
  if (comm == nullptr) return;
  const bool unwinding = std::uncaught_exceptions() > exceptions_at_start;
  if (!lost && !unwinding) {
    const ncclResult_t flushed = ncclCommFinalize(comm);
    report_nccl(flushed, "ncclCommFinalize");
    if (flushed == ncclSuccess) {
      report_nccl(ncclCommDestroy(comm), "ncclCommDestroy");
      return;
    }
  }
  // Finalising could wait for peers that wait for this rank.
  report_nccl(ncclCommAbort(comm), "ncclCommAbort");
}

std::string NcclCommunicator::copy_engine_obstacle(const RankGroup& ranks) {
  constexpr int kNeeded = 22800;
  const int version = std::min(library_version(), NCCL_VERSION_CODE);
  if (version < kNeeded) {
    return fmt::format("they need NCCL {}, this is {}", version_text(kNeeded),
                       version_text(version));
  }
  if (ranks.hosts().count() > 1) return "the ranks are on several hosts";
  if (pretended_gpus() > 0) return "the ranks share a GPU";
  return {};
}

NcclCommunicator::NcclCommunicator(RankGroup& ranks, Device& device, Options options)
    : state_(std::make_unique<State>(ranks, device, std::move(options.on_failure))) {
  State& s = *state_;
  s.rank = static_cast<std::size_t>(ranks.rank());
  s.size = static_cast<std::size_t>(ranks.size());
  if (s.size == 1) return;
  ranks.all_or_none([&] {
    s.copy_engine = options.copy_engine && copy_engine_obstacle(ranks).empty();
    ZI_CUDA(cudaGetDevice(&s.gpu));
  });
  if (ranks_share_gpus(ranks)) {
    pretend_hosts_to_nccl(ranks);
  } else {
    check_gpus_differ(ranks, s.gpu);
  }
  connect(ranks);
  warm_up(ranks);
}

NcclCommunicator::~NcclCommunicator() = default;

void NcclCommunicator::connect(RankGroup& ranks) {
  State& s = *state_;
  ncclUniqueId id{};
  ranks.all_or_none([&] {
    if (ranks.rank() == 0) ZI_NCCL(ncclGetUniqueId, &id);
  });
  const std::string bytes = ranks.broadcast(std::string(id.internal, sizeof(id.internal)), 0);
  std::memcpy(id.internal, bytes.data(), sizeof(id.internal));

  run_together(
      ranks,
      [&] {
        ZI_CUDA(cudaSetDevice(s.gpu));
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
#if ZI_NCCL_HAS_2_28
        if (s.copy_engine) config.CTAPolicy = NCCL_CTA_POLICY_ZERO;
#endif
        // What a failed call leaves here is not to be used, not even to be aborted.
        ncclComm_t made = nullptr;
        ZI_NCCL(ncclCommInitRankConfig, &made, ranks.size(), id, ranks.rank(), &config);
        s.handle->comm = made;
      },
      s.on_failure)
      .check(ranks);
  s.watcher = std::make_unique<Watcher>(s.handle->comm, s.on_failure);
  if (ranks.rank() == 0) {
    log_verbose(fmt::format("NCCL {} (built with {}), {} ranks, {}; its environment:{}",
                            version_text(library_version()), version_text(NCCL_VERSION_CODE),
                            ranks.size(), s.copy_engine ? "zero-CTA policy" : "default policy",
                            nccl_environment()));
  }
}

/// NCCL connects in the first call of each kind, and then waits for its peers and takes memory.
/// After this, enqueueing waits for nobody, and the device's free memory stays free.
void NcclCommunicator::warm_up(RankGroup& ranks) {
  State& s = *state_;
  const std::size_t bytes = s.size * kWarmUpBytes;
  Buffer memory, window;
  std::unique_ptr<Stream> stream;
  ranks.all_or_none([&] {
    memory = s.device.allocate(2 * bytes);
    stream = s.device.make_stream("nccl");
  });
  if (s.copy_engine) window = allocate(s.device, 2 * bytes);
  run_together(
      ranks,
      [&] {
        ZI_CUDA(cudaSetDevice(s.gpu));
        for (const Buffer* buffer : {&memory, &window}) {
          if (buffer->bytes() == 0) continue;
          std::byte* const blocks = buffer->data();
          all_gather(blocks + s.rank * kWarmUpBytes, blocks, kWarmUpBytes, *stream);
          all_to_all(blocks, blocks + bytes, kWarmUpBytes, *stream);
        }
        stream->synchronize();
      },
      s.on_failure)
      .check(ranks);
}

void NcclCommunicator::all_gather(const void* send, void* recv, std::size_t bytes, Stream& stream) {
  State& s = *state_;
  cudaStream_t const queue = cuda_stream(stream);
  if (bytes == 0) return;
  if (s.size == 1) {
    if (send != recv) s.device.copy(recv, send, bytes, stream);
    return;
  }
  check();
  s.broken = true;  // until the end is reached
  ZI_NCCL(ncclAllGather, send, recv, bytes, ncclUint8, s.handle->comm, queue);
  // A ring enters a host once, with all blocks but the one of the rank where it does. The GPUs of
  // the host have rings, and with them network cards, in turn.
  if (s.away() > 0) s.network_bytes += (s.size - 1) * bytes / (s.size - s.away());
  s.broken = false;
}

void NcclCommunicator::all_to_all(const void* send, void* recv, std::size_t bytes, Stream& stream) {
  if (send == recv && bytes != 0) throw Error("all_to_all cannot work in place: send equals recv");
  State& s = *state_;
  cudaStream_t const queue = cuda_stream(stream);
  if (bytes == 0) return;
  if (s.size == 1) {
    s.device.copy(recv, send, bytes, stream);
    return;
  }
  check();
  s.broken = true;  // until the end is reached
#if ZI_NCCL_HAS_2_28
  ZI_NCCL(ncclAlltoAll, send, recv, bytes, ncclUint8, s.handle->comm, queue);
#else
  ZI_NCCL(ncclGroupStart);
  ncclResult_t result = ncclSuccess;
  for (std::size_t r = 0; r < s.size && result == ncclSuccess; ++r) {
    const int peer = static_cast<int>(r);
    result = ncclSend(static_cast<const std::byte*>(send) + r * bytes, bytes, ncclUint8, peer,
                      s.handle->comm, queue);
    if (result != ncclSuccess) break;
    result = ncclRecv(static_cast<std::byte*>(recv) + r * bytes, bytes, ncclUint8, peer,
                      s.handle->comm, queue);
  }
  const ncclResult_t ended = ncclGroupEnd();  // a group that is begun must be ended
  check_nccl(result, "ncclSend or ncclRecv");
  check_nccl(ended, "ncclGroupEnd");
#endif
  s.network_bytes += s.away() * bytes;
  s.broken = false;
}

std::uint64_t NcclCommunicator::network_bytes() const { return state_->network_bytes; }

Buffer NcclCommunicator::allocate(Device& device, std::size_t bytes) {
  State& s = *state_;
  Buffer buffer;
  if (s.copy_engine && bytes > 0) buffer = allocate_window(s.ranks, bytes);
  if (buffer.data() != nullptr) return buffer;
  s.ranks.all_or_none([&] { buffer = device.allocate(bytes); });
  return buffer;
}

std::unique_ptr<PeerExchange> NcclCommunicator::make_peer_exchange(Device& device,
                                                                   std::size_t bytes) {
  return make_gpu_peers(state_->ranks, device, bytes);
}

/// Empty where it is not available, on all ranks or none.
Buffer NcclCommunicator::allocate_window([[maybe_unused]] RankGroup& ranks,
                                         [[maybe_unused]] std::size_t bytes) {
#if ZI_NCCL_HAS_2_28
  State& s = *state_;
  void* data = nullptr;
  const char taken = ncclMemAlloc(&data, bytes) == ncclSuccess ? 1 : 0;
  const std::vector<char> all = ranks.all_gather(taken);
  if (std::ranges::find(all, 0) != all.end()) {  // the device says with numbers what is missing
    if (taken != 0) report_nccl(ncclMemFree(data), "ncclMemFree");
    return {};
  }
  ncclWindow_t window = nullptr;
  const Together registered = run_together(
      ranks,
      [&] {
        ZI_CUDA(cudaSetDevice(s.gpu));
        ZI_NCCL(ncclCommWindowRegister, s.handle->comm, data, bytes, &window,
                NCCL_WIN_COLL_SYMMETRIC);
        if (window == nullptr) throw CommError("ncclCommWindowRegister gave no window");
      },
      s.on_failure);
  Buffer buffer(data, bytes, [handle = s.handle, window](void* memory) {
    release_window(*handle, window, memory);
  });
  if (registered.ok()) return buffer;
  s.copy_engine = false;
  if (ranks.rank() == 0) {
    log_warning(fmt::format("NCCL's copy engines cannot be used, kernels do the gathers: {}",
                            registered.text));
  }
#endif
  return {};
}

void NcclCommunicator::check() {
  if (state_->watcher != nullptr) state_->watcher->check();
}

bool NcclCommunicator::copy_engine() const { return state_->copy_engine; }

}  // namespace zi
