#include "comm/mpi_support.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <thread>

#include "zero_infer/error.h"

namespace zi {

using std::chrono::microseconds;

void check_mpi(int code, const char* function) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) length = 0;
  throw CommError(fmt::format("{} failed with code {}: {}", function, code,
                              std::string_view(text.data(), static_cast<std::size_t>(length))));
}

void Backoff::pause() {
  const auto waited = std::chrono::steady_clock::now() - start_;
  if (waited < microseconds(20)) return;
  if (waited < microseconds(100)) {
    std::this_thread::yield();
    return;
  }
  std::this_thread::sleep_for(std::min<std::chrono::steady_clock::duration>(waited / 8, longest_));
}

void wait_for(MPI_Request& request, microseconds longest) { wait_for_all({&request, 1}, longest); }

void wait_for_all(std::span<MPI_Request> requests, microseconds longest) {
  // A call that finds nothing to do takes less than a microsecond. A longer one has moved bytes,
  // and where MPI moves them fragment by fragment (no single-copy access between processes, as in
  // many containers) more will follow soon: sleeping between them would cost most of the speed. (It
  // may have looked at sockets too, as every tenth call does: who waits for long has no fragments
  // to wait for, and sleeps on.)
  constexpr auto kMovedBytes = microseconds(3);
  const bool long_wait = longest > Backoff::kLongest;
  Backoff backoff(longest);
  for (;;) {
    int done = 0;
    const auto before = std::chrono::steady_clock::now();
    ZI_MPI(MPI_Testall, static_cast<int>(requests.size()), requests.data(), &done,
           MPI_STATUSES_IGNORE);
    if (done != 0) return;
    const bool moved_bytes = std::chrono::steady_clock::now() - before > kMovedBytes;
    if (moved_bytes && !long_wait) backoff = Backoff(longest);
    backoff.pause();
  }
}

MpiComm::~MpiComm() {
  if (comm_ == MPI_COMM_NULL) return;
  // After MPI_Finalize nothing is left to free; before it, a failure here changes nothing for the
  // caller.
  int finalized = 0;
  if (MPI_Finalized(&finalized) == MPI_SUCCESS && finalized == 0) MPI_Comm_free(&comm_);
}

MpiComm MpiComm::duplicate(MPI_Comm parent) {
  MPI_Comm copy = MPI_COMM_NULL;
  ZI_MPI(MPI_Comm_dup, parent, &copy);
  return MpiComm(copy);
}

int MpiComm::rank() const {
  int rank = 0;
  ZI_MPI(MPI_Comm_rank, comm_, &rank);
  return rank;
}

int MpiComm::size() const {
  int size = 0;
  ZI_MPI(MPI_Comm_size, comm_, &size);
  return size;
}

}  // namespace zi
