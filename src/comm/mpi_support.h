#pragma once

// The C interface only: the C++ one of old MPI versions would want a library of its own.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <chrono>
#include <span>
#include <utility>

namespace zi {

/// Throws CommError with the call's name and MPI's own text unless `code` is MPI_SUCCESS.
void check_mpi(int code, const char* function);

/// Calls an MPI function and checks what it returns: ZI_MPI(MPI_Comm_rank, comm, &rank).
#define ZI_MPI(function, ...) ::zi::check_mpi(function(__VA_ARGS__), #function)

/// Pauses of a thread that polls: spins for some microseconds (for a peer that is nearly there),
/// then yields, then sleeps an eighth of the time waited so far, `longest` at most. A long wait
/// takes little CPU time, a short one adds no latency.
class Backoff {
 public:
  static constexpr std::chrono::microseconds kLongest{200};
  explicit Backoff(std::chrono::microseconds longest = kLongest) : longest_(longest) {}
  void pause();

 private:
  std::chrono::microseconds longest_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Blocks until the request is done, with Backoff. MPI_Test drives the transfer.
void wait_for(MPI_Request& request, std::chrono::microseconds longest = Backoff::kLongest);
/// The same of several.
void wait_for_all(std::span<MPI_Request> requests,
                  std::chrono::microseconds longest = Backoff::kLongest);

/// Move-only owner of a communicator.
class MpiComm {
 public:
  MpiComm() = default;
  explicit MpiComm(MPI_Comm comm) : comm_(comm) {}
  ~MpiComm();
  MpiComm(MpiComm&& other) noexcept : comm_(std::exchange(other.comm_, MPI_COMM_NULL)) {}
  MpiComm& operator=(MpiComm&& other) noexcept {
    std::swap(comm_, other.comm_);
    return *this;
  }
  MpiComm(const MpiComm&) = delete;
  MpiComm& operator=(const MpiComm&) = delete;

  /// Collective over `parent`.
  static MpiComm duplicate(MPI_Comm parent);

  MPI_Comm get() const { return comm_; }
  int rank() const;
  int size() const;

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
};

}  // namespace zi
