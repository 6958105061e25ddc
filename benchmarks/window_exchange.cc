#include "window_exchange.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <cstring>
#include <exception>
#include <functional>
#include <string>

#include "backend/cuda/cuda_support.h"
#include "comm/together.h"
#include "window_kernels.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

std::string version_text(int code) {
  return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

void check_nccl(ncclResult_t code, const char* function) {
  if (code == ncclSuccess) return;
  const char* const last = ncclGetLastError(nullptr);
  throw CommError(fmt::format("{} failed: {} ({})", function, ncclGetErrorString(code),
                              last == nullptr ? "" : last));
}

/// Calls a function of NCCL and checks what it returns: ZI_NCCL(ncclGetVersion, &version).
#define ZI_NCCL(function, ...) check_nccl(function(__VA_ARGS__), #function)

/// The structures that the library fills and kernels read have no version in 2.28, and differ
/// between 2.28.3 and 2.28.9: another library than the headers' would be misread, not refused.
void check_version() {
  int loaded = 0;
  ZI_NCCL(ncclGetVersion, &loaded);
  if (!ZI_NCCL_HAS_DEVICE_API || loaded < 22800) {
    throw ConfigError(fmt::format("it came with NCCL 2.28; this was built with {} and runs with {}",
                                  version_text(NCCL_VERSION_CODE), version_text(loaded)));
  }
#if ZI_NCCL_HAS_DEVICE_API
  if (window_kernels_version() != NCCL_VERSION_CODE) {
    throw ConfigError(
        fmt::format("its kernels were built with the headers of NCCL {}, and what "
                    "starts them with those of {}: give nvcc the same ones",
                    version_text(window_kernels_version()), version_text(NCCL_VERSION_CODE)));
  }
#endif
  if (loaded != NCCL_VERSION_CODE) {
    throw ConfigError(fmt::format(
        "its kernels are of NCCL {}, and {} is loaded, which they may not fit: build with its "
        "headers (cmake -DNCCL_INCLUDE_DIR=DIR), or run with the other library",
        version_text(NCCL_VERSION_CODE), version_text(loaded)));
  }
}

#if ZI_NCCL_HAS_DEVICE_API

/// For destructors.
void report_nccl(ncclResult_t code, const char* function) {
  if (code != ncclSuccess) {
    log_warning(fmt::format("{} failed: {}", function, ncclGetErrorString(code)));
  }
}

class NcclWindow final : public WindowExchange {
 public:
  NcclWindow(RankGroup& ranks, std::size_t bytes) : ranks_(&ranks), bytes_(bytes) {
    ranks.all_or_none([&] { ZI_CUDA(cudaGetDevice(&gpu_)); });
  }
  ~NcclWindow() override;
  NcclWindow(const NcclWindow&) = delete;
  NcclWindow& operator=(const NcclWindow&) = delete;

  /// Collective. What it made before it throws goes with the destructor.
  void connect();

  std::byte* memory() override { return static_cast<std::byte*>(memory_); }
  std::size_t bytes() const override { return bytes_; }
  void meet(Meet where) override { team_.meet_before = where == Meet::kBeforeAndAfter; }

  void gather_inputs(const void* inputs, std::size_t bytes, std::size_t offset,
                     Stream& stream) override {
    if (bytes == 0) return;
    check_room(offset, bytes);
    window_gather_inputs(team_, inputs, bytes, offset, cuda_stream(stream));
  }
  void return_results(const void* parts, DType type, std::int64_t rows,
                      std::span<const std::int64_t> slices, std::size_t offset, void* results,
                      Stream& stream) override {
    if (slices.size() != 1) throw Error("NCCL's device API returns results of one matrix here");
    const std::size_t row = static_cast<std::size_t>(slices[0]) * size_of(type);
    const std::size_t bytes = static_cast<std::size_t>(rows) * row;
    if (bytes == 0) return;
    check_room(offset, bytes);
    window_return_results(team_, parts, bytes, row, offset, results, cuda_stream(stream));
  }

 private:
  /// For `bytes` of each rank.
  void check_room(std::size_t offset, std::size_t bytes) const {
    const std::size_t all = static_cast<std::size_t>(ranks_->size()) * bytes;
    if (offset <= bytes_ && all <= bytes_ - offset) return;
    throw Error(fmt::format("{} bytes at {} are beyond the window of {}", all, offset, bytes_));
  }
  /// Runs a step of NCCL that waits for the other ranks.
  void together(const std::function<void()>& step) {
    run_together(
        *ranks_,
        [&] {
          ZI_CUDA(cudaSetDevice(gpu_));
          step();
        },
        [](const std::string& text) { log_error(text); })
        .check(*ranks_);
  }

  RankGroup* ranks_;
  int gpu_ = 0;
  std::size_t bytes_;
  int exceptions_at_start_ = std::uncaught_exceptions();
  ncclComm_t comm_ = nullptr;
  void* memory_ = nullptr;
  bool team_made_ = false;
  WindowTeam team_{};
};

void NcclWindow::connect() {
  ncclUniqueId id{};
  ranks_->all_or_none([&] {
    if (ranks_->rank() == 0) ZI_NCCL(ncclGetUniqueId, &id);
  });
  const std::string bytes = ranks_->broadcast(std::string(id.internal, sizeof(id.internal)), 0);
  std::memcpy(id.internal, bytes.data(), sizeof(id.internal));
  together([&] {
    // What a failed call leaves here is not to be used, not even to be aborted.
    ncclComm_t made = nullptr;
    ZI_NCCL(ncclCommInitRank, &made, ranks_->size(), id, ranks_->rank());
    comm_ = made;
  });
  together([&] {
  // First: where memory cannot be symmetric this refuses, and the registration does not.
#ifdef NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER
    ncclDevCommRequirements needs = NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER;
#else
    ncclDevCommRequirements needs{};
#endif
    needs.lsaMultimem = false;
    needs.lsaBarrierCount = kWindowBarriers;
    ZI_NCCL(ncclDevCommCreate, comm_, &needs, &team_.comm);
    team_made_ = true;
  });
  ranks_->all_or_none([&] {
    if (team_.comm.lsaSize != ranks_->size() || team_.comm.nRanks != ranks_->size() ||
        team_.comm.lsaRank != ranks_->rank()) {
      throw CommError(fmt::format("only {} of {} ranks reach each other's memory",
                                  team_.comm.lsaSize, ranks_->size()));
    }
    ZI_NCCL(ncclMemAlloc, &memory_, bytes_);
  });
  together([&] {
    ZI_NCCL(ncclCommWindowRegister, comm_, memory_, bytes_, &team_.window, NCCL_WIN_COLL_SYMMETRIC);
    if (team_.window == nullptr) throw CommError("ncclCommWindowRegister gave no window");
  });
}

NcclWindow::~NcclWindow() {
  const bool unwinding = std::uncaught_exceptions() > exceptions_at_start_;
  // No peer uses what goes now.
  if (!unwinding || ranks_->leaving_together()) ranks_->barrier();
  if (comm_ != nullptr) {
    if (team_.window != nullptr) {
      report_nccl(ncclCommWindowDeregister(comm_, team_.window), "ncclCommWindowDeregister");
    }
    if (team_made_) report_nccl(ncclDevCommDestroy(comm_, &team_.comm), "ncclDevCommDestroy");
    if (unwinding) {  // waits for nobody
      report_nccl(ncclCommAbort(comm_), "ncclCommAbort");
    } else {
      report_nccl(ncclCommDestroy(comm_), "ncclCommDestroy");
    }
  }
  if (memory_ != nullptr) report_nccl(ncclMemFree(memory_), "ncclMemFree");
}

#endif

}  // namespace

std::unique_ptr<WindowExchange> make_window_exchange(RankGroup& ranks, Device&, std::size_t bytes) {
  ranks.all_or_none([&] { check_version(); });
#if ZI_NCCL_HAS_DEVICE_API
  auto window = std::make_unique<NcclWindow>(ranks, bytes);
  window->connect();
  window->meet(WindowExchange::Meet::kBeforeAndAfter);
  return window;
#else
  static_cast<void>(bytes);
  return nullptr;  // not reached: the check has thrown
#endif
}

}  // namespace zi
