#include "comm/gpu_peers.h"

#include <fmt/format.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "backend/cuda/cuda_support.h"
#include "backend/cuda/peer_kernels.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// CUDA shares whole pieces of memory of this size.
constexpr std::size_t kShareable = std::size_t{2} << 20;
/// For the first exchange, which takes microseconds.
constexpr std::chrono::seconds kFirstExchange{10};
constexpr std::size_t kTrialInts = 64;  // of each rank, for each rank

/// Why there can be no peers, before anything was tried; the same on every rank but for the
/// environment.
std::string obstacle(const RankGroup& ranks) {
  if (ranks.hosts().count() > 1) return "the ranks are on several hosts";
  if (ranks.size() > kMostPeers) return fmt::format("there are more than {} ranks", kMostPeers);
  const char* const disabled = std::getenv("NCCL_P2P_DISABLE");
  if (disabled != nullptr && std::string_view(disabled) != "0") return "NCCL_P2P_DISABLE is set";
  return {};
}

class GpuPeers final : public PeerExchange {
 public:
  /// Takes the memory: zeros, which others may be shown.
  GpuPeers(RankGroup& ranks, Device& device, std::size_t bytes)
      : ranks_(&ranks),
        device_(&device),
        bytes_(bytes),
        shared_(device.allocate(align_up(kPeerHeaderBytes + bytes, kShareable))),
        stop_(device.allocate_pinned(kPageBytes)) {
    *stop_.as<int>() = 0;
    peers_.world = ranks.size();
    peers_.rank = ranks.rank();
    peers_.stop = stop_.as<int>();
    peers_.base[peers_.rank] = shared_.data();
    ZI_CUDA(cudaMemset(shared_.data(), 0, shared_.bytes()));
    ZI_CUDA(cudaDeviceSynchronize());
  }
  ~GpuPeers() override {
    for (int rank = 0; rank < peers_.world; ++rank) {
      if (rank == peers_.rank || peers_.base[rank] == nullptr) continue;
      cudaIpcCloseMemHandle(peers_.base[rank]);
    }
    // CUDA does not define what memory is that is given back while others still map it.
    const bool alone =
        std::uncaught_exceptions() > exceptions_at_start_ && !ranks_->leaving_together();
    if (!alone) ranks_->barrier();
  }
  GpuPeers(const GpuPeers&) = delete;
  GpuPeers& operator=(const GpuPeers&) = delete;

  std::byte* memory() override { return shared_.data() + kPeerHeaderBytes; }
  std::size_t bytes() const override { return bytes_; }
  void gather_inputs(const void* inputs, std::size_t bytes, std::size_t offset,
                     Stream& stream) override {
    if (bytes == 0) return;
    check_room(offset, static_cast<std::size_t>(peers_.world) * bytes);
    cuda_gather_inputs(peers_, inputs, bytes, offset, cuda_stream(stream));
  }
  void return_results(const void* parts, DType type, std::int64_t rows,
                      std::span<const std::int64_t> slices, std::size_t offset, void* results,
                      Stream& stream) override {
    std::size_t row = 0;
    for (const std::int64_t slice : slices) row += static_cast<std::size_t>(slice) * size_of(type);
    const std::size_t of_rank = static_cast<std::size_t>(rows) * row;
    if (of_rank == 0) return;
    check_room(offset, static_cast<std::size_t>(peers_.world) * of_rank);
    cuda_return_results(peers_, parts, type, rows, slices, offset, results, cuda_stream(stream));
  }

  cudaIpcMemHandle_t handle() const {
    cudaIpcMemHandle_t handle{};
    ZI_CUDA(cudaIpcGetMemHandle(&handle, shared_.data()));
    return handle;
  }
  /// The memory of the others, by rank.
  void open(const std::vector<cudaIpcMemHandle_t>& handles) {
    for (int rank = 0; rank < peers_.world; ++rank) {
      if (rank == peers_.rank) continue;
      void* data = nullptr;
      ZI_CUDA(cudaIpcOpenMemHandle(&data, handles[static_cast<std::size_t>(rank)],
                                   cudaIpcMemLazyEnablePeerAccess));
      peers_.base[rank] = static_cast<std::byte*>(data);
    }
  }
  /// An exchange of known numbers in both directions; every rank must make it. Throws where it does
  /// not end or gives others.
  void try_out();

 private:
  void check_room(std::size_t offset, std::size_t bytes) const {
    if (offset <= bytes_ && bytes <= bytes_ - offset) return;
    throw Error(
        fmt::format("{} bytes at {} are beyond the {} that peers share", bytes, offset, bytes_));
  }
  RankGroup* ranks_;
  Device* device_;
  int exceptions_at_start_ = std::uncaught_exceptions();
  std::size_t bytes_;
  Buffer shared_;
  Buffer stop_;
  PeerTable peers_{};
};

/// Both steps go on from one rank's numbers to those that all have made of them.
void GpuPeers::try_out() {
  const auto world = static_cast<std::size_t>(peers_.world);
  const auto own = static_cast<std::size_t>(peers_.rank);
  const auto number = [](std::size_t rank, std::size_t i) {
    return static_cast<int>(1000003 * (rank + 1) + i);
  };
  const std::size_t count = world * kTrialInts;
  const std::size_t results_at = align_up(count * sizeof(int), kMatrixAlignment);
  Buffer host =
      device_->allocate_pinned(kPageBytes * ceil_div(4 * count * sizeof(int), kPageBytes));
  Buffer memory = device_->allocate(2 * count * sizeof(int));
  std::unique_ptr<Stream> stream = device_->make_stream("peers");
  int* const sent = host.as<int>();
  int* const gathered = sent + count;
  int* const returned = gathered + count;
  for (std::size_t i = 0; i < kTrialInts; ++i) sent[i] = number(own, i);
  device_->copy(memory.data(), sent, kTrialInts * sizeof(int), *stream);
  gather_inputs(memory.data(), kTrialInts * sizeof(int), 0, *stream);
  device_->copy(gathered, this->memory(), count * sizeof(int), *stream);
  const std::array slices = {static_cast<std::int64_t>(kTrialInts)};
  // Returned as they came: each rank gets its own numbers back from all.
  return_results(this->memory(), DType::kFloat32, 1, slices, results_at, memory.data(), *stream);
  device_->copy(returned, memory.data(), count * sizeof(int), *stream);
  const std::unique_ptr<Event> end = device_->make_event();
  stream->record(*end);
  const auto deadline = std::chrono::steady_clock::now() + kFirstExchange;
  while (!end->reached() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  const bool ended = end->reached();
  if (!ended) *static_cast<volatile int*>(stop_.as<int>()) = 1;
  stream->synchronize();
  if (!ended) throw CommError("a GPU waits in vain for what another stores in its memory");
  for (std::size_t rank = 0; rank < world; ++rank) {
    for (std::size_t i = 0; i < kTrialInts; ++i) {
      const std::size_t at = rank * kTrialInts + i;
      if (gathered[at] == number(rank, i) && returned[at] == number(own, i)) continue;
      throw CommError("what a GPU stores in another's memory does not arrive");
    }
  }
}

/// Collective: runs the step on all ranks, and says what the lowest one that failed throws. The
/// step must not be collective.
std::string failure_of(RankGroup& ranks, const std::function<void()>& step) {
  std::string text;
  try {
    step();
  } catch (const std::exception& error) {
    text = *error.what() != '\0' ? error.what() : "an exception without a text";
    cudaGetLastError();
  }
  const std::vector<char> failed = ranks.all_gather(static_cast<char>(text.empty() ? 0 : 1));
  for (std::size_t rank = 0; rank < failed.size(); ++rank) {
    if (failed[rank] != 0) return ranks.broadcast(text, static_cast<int>(rank));
  }
  return {};
}

}  // namespace

std::unique_ptr<PeerExchange> make_gpu_peers(RankGroup& ranks, Device& device, std::size_t bytes) {
  if (ranks.size() == 1 || bytes == 0) return nullptr;
  std::string why = failure_of(ranks, [&] {
    const std::string text = obstacle(ranks);
    if (!text.empty()) throw CommError(text);
  });
  std::unique_ptr<GpuPeers> peers;
  if (why.empty()) {
    const auto room = align_up(static_cast<std::size_t>(ranks.size()) * kTrialInts * sizeof(int),
                               kMatrixAlignment);
    ranks.all_or_none(
        [&] { peers = std::make_unique<GpuPeers>(ranks, device, std::max(bytes, 2 * room)); });
    cudaIpcMemHandle_t mine{};
    why = failure_of(ranks, [&] { mine = peers->handle(); });
    if (why.empty()) {
      const std::vector<cudaIpcMemHandle_t> handles = ranks.all_gather(mine);
      why = failure_of(ranks, [&] { peers->open(handles); });
    }
    if (why.empty()) why = failure_of(ranks, [&] { peers->try_out(); });
  }
  if (why.empty()) return peers;
  static bool told = false;
  if (ranks.rank() == 0 && !std::exchange(told, true)) {
    const std::string text =
        fmt::format("GPUs exchange through NCCL, not by each other's memory: {}", why);
    ranks.hosts().count() > 1 ? log_verbose(text) : log_warning(text);
  }
  return nullptr;
}

}  // namespace zi
