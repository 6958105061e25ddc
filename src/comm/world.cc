#include "zero_infer/world.h"

#include <fmt/format.h>

#include <array>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <new>

#include "comm/mpi_communicator.h"
#include "comm/mpi_support.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

constexpr int kStringTag = 1;
constexpr std::chrono::milliseconds kLongWaitSleep(5);

/// MPI between its initialisation and its end.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv) {
    int initialized = 0;
    ZI_MPI(MPI_Initialized, &initialized);
    if (initialized != 0) throw CommError("MPI is already initialised; a process has one World");
    int provided = MPI_THREAD_SINGLE;
    ZI_MPI(MPI_Init_thread, argc, argv, MPI_THREAD_MULTIPLE, &provided);
    open_ = true;
    if (provided < MPI_THREAD_MULTIPLE) {
      finish();  // every rank has the same library and comes here
      throw CommError(
          "this MPI library does not offer the thread level MPI_THREAD_MULTIPLE, which the streams "
          "need; use one that was built with it (the Open MPI of Linux distributions is)");
    }
    ZI_MPI(MPI_Comm_set_errhandler, MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  }
  ~MpiSession() { finish(); }
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

 private:
  void finish() {
    if (open_) MPI_Finalize();
    open_ = false;
  }
  bool open_ = false;
};

int checked_count(std::size_t bytes, const char* what) {
  if (bytes > INT_MAX) {
    throw CommError(
        fmt::format("{} of {} bytes is too large for a control message, which holds at most {}",
                    what, bytes, INT_MAX));
  }
  return static_cast<int>(bytes);
}

/// How a rank's step of all_or_none ended; a larger value takes precedence.
enum class Outcome : std::int32_t { kDone, kFollowed, kFailed };

/// The exception being handled, as a zi::Error.
std::exception_ptr as_error() {
  try {
    throw;
  } catch (const Error&) {
    return std::current_exception();
  } catch (const std::bad_alloc&) {
    return std::make_exception_ptr(Error("not enough host memory (std::bad_alloc)"));
  } catch (const std::exception& e) {
    return std::make_exception_ptr(Error(e.what()));
  } catch (...) {
    return std::make_exception_ptr(Error("an exception of unknown type was thrown"));
  }
}

}  // namespace

struct World::State {
  State(int* argc, char*** argv) : session(argc, argv) {}

  MPI_Comm comm() const { return control.get(); }
  bool on_root(int root) const {
    if (root < 0 || root >= size) {
      throw CommError(fmt::format("rank {} cannot be the root in a world of {}", root, size));
    }
    return rank == root;
  }

  MpiSession session;  // first: finalised last
  bool long_wait = false;
  MpiComm control;
  int rank = 0;
  int size = 1;
  int local_rank = 0;
  int local_size = 1;
  std::string host;
  int exceptions_at_start = std::uncaught_exceptions();
  bool leaving_together =
      false;  // the last thing that happened here is that all_or_none threw on every rank
};

World::World(int* argc, char*** argv) : state_(std::make_unique<State>(argc, argv)) {
  State& s = *state_;
  s.control = MpiComm::duplicate(MPI_COMM_WORLD);
  s.rank = s.control.rank();
  s.size = s.control.size();

  MPI_Comm shared = MPI_COMM_NULL;
  ZI_MPI(MPI_Comm_split_type, s.comm(), MPI_COMM_TYPE_SHARED, s.rank, MPI_INFO_NULL, &shared);
  const MpiComm local(shared);
  s.local_rank = local.rank();
  s.local_size = local.size();

  std::array<char, MPI_MAX_PROCESSOR_NAME> host{};
  int length = 0;
  ZI_MPI(MPI_Get_processor_name, host.data(), &length);
  s.host.assign(host.data(), static_cast<std::size_t>(length));
}

World::~World() {
  State& s = *state_;
  const bool unwinding = std::uncaught_exceptions() > s.exceptions_at_start;
  if (unwinding && s.size > 1 && !s.leaving_together) {
    // This rank leaves alone: MPI_Finalize would wait for peers that wait for this rank in some
    // collective. Only an abort ends them.
    log_error("this rank failed alone, and the other ranks do not know; ending the job");
    abort(1);
  }
  try {
    barrier();  // sleeps until the slowest rank is here; MPI_Finalize would spin
  } catch (const std::exception& e) {
    log_warning(fmt::format("the ranks could not end together: {}", e.what()));
  }
}

int World::rank() const { return state_->rank; }
int World::size() const { return state_->size; }
int World::local_rank() const { return state_->local_rank; }
int World::local_size() const { return state_->local_size; }
const std::string& World::host() const { return state_->host; }

void World::all_gather_bytes(const void* send, void* recv, std::size_t bytes) {
  state_->leaving_together = false;
  // Some MPI libraries compute rank * count in an int.
  checked_count(bytes * static_cast<std::size_t>(state_->size), "an all-gather");
  const int count = static_cast<int>(bytes);
  MPI_Request request = MPI_REQUEST_NULL;
  ZI_MPI(MPI_Iallgather, send, count, MPI_BYTE, recv, count, MPI_BYTE, state_->comm(), &request);
  const bool long_wait = std::exchange(state_->long_wait, false);
  wait_for(request, long_wait ? kLongWaitSleep : Backoff::kLongest);
}

void World::expect_long_wait() { state_->long_wait = true; }

std::string World::broadcast(std::string bytes, int root) {
  state_->leaving_together = false;
  const bool sends = state_->on_root(root);
  if (sends) checked_count(bytes.size(), "a string");
  auto size = static_cast<std::uint64_t>(bytes.size());
  MPI_Request request = MPI_REQUEST_NULL;
  ZI_MPI(MPI_Ibcast, &size, 1, MPI_UINT64_T, root, state_->comm(), &request);
  wait_for(request);
  if (!sends) bytes.assign(size, '\0');
  if (size == 0) return bytes;
  ZI_MPI(MPI_Ibcast, bytes.data(), static_cast<int>(size), MPI_BYTE, root, state_->comm(),
         &request);
  wait_for(request);
  return bytes;
}

std::vector<std::string> World::gather(std::string_view bytes, int root) {
  State& s = *state_;
  s.leaving_together = false;
  const bool receives = s.on_root(root);
  const int count = checked_count(bytes.size(), "a string");
  std::vector<int> sizes(receives ? static_cast<std::size_t>(s.size) : 0);
  MPI_Request request = MPI_REQUEST_NULL;
  ZI_MPI(MPI_Igather, &count, 1, MPI_INT, sizes.data(), 1, MPI_INT, root, s.comm(), &request);
  wait_for(request);
  if (!receives) {
    if (count == 0) return {};
    ZI_MPI(MPI_Isend, bytes.data(), count, MPI_BYTE, root, kStringTag, s.comm(), &request);
    wait_for(request);
    return {};
  }
  // Messages of their own rather than a gatherv: all strings together may exceed 2 GiB.
  std::vector<std::string> all(sizes.size());
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (static_cast<int>(r) == root) {
      all[r] = bytes;
    } else if (sizes[r] != 0) {
      all[r].resize(static_cast<std::size_t>(sizes[r]));
      ZI_MPI(MPI_Irecv, all[r].data(), sizes[r], MPI_BYTE, static_cast<int>(r), kStringTag,
             s.comm(), &request);
      wait_for(request);
    }
  }
  return all;
}

std::string World::scatter(const std::vector<std::string>& items, int root) {
  State& s = *state_;
  s.leaving_together = false;
  const bool sends = s.on_root(root);
  std::vector<int> sizes;
  if (sends) {
    if (items.size() != static_cast<std::size_t>(s.size)) {
      throw CommError(
          fmt::format("{} items cannot be scattered over {} ranks", items.size(), s.size));
    }
    for (const std::string& item : items) sizes.push_back(checked_count(item.size(), "a string"));
  }
  int size = 0;
  MPI_Request request = MPI_REQUEST_NULL;
  ZI_MPI(MPI_Iscatter, sizes.data(), 1, MPI_INT, &size, 1, MPI_INT, root, s.comm(), &request);
  wait_for(request);
  if (sends) {
    for (int r = 0; r < s.size; ++r) {
      const std::string& item = items[static_cast<std::size_t>(r)];
      if (r == root || item.empty()) continue;
      ZI_MPI(MPI_Isend, item.data(), sizes[static_cast<std::size_t>(r)], MPI_BYTE, r, kStringTag,
             s.comm(), &request);
      wait_for(request);
    }
    return items[static_cast<std::size_t>(root)];
  }
  std::string item(static_cast<std::size_t>(size), '\0');
  if (size == 0) return item;
  ZI_MPI(MPI_Irecv, item.data(), size, MPI_BYTE, root, kStringTag, s.comm(), &request);
  wait_for(request);
  return item;
}

void World::barrier() {
  state_->leaving_together = false;
  MPI_Request request = MPI_REQUEST_NULL;
  ZI_MPI(MPI_Ibarrier, state_->comm(), &request);
  wait_for(request);
}

void World::all_or_none(const std::function<void()>& step) {
  Outcome mine = Outcome::kDone;
  std::exception_ptr error;
  try {
    step();
  } catch (const PeerError&) {
    mine = Outcome::kFollowed;  // of an all_or_none inside `step`: the rank that failed has the
                                // message
    error = std::current_exception();
  } catch (...) {
    mine = Outcome::kFailed;
    error = as_error();
  }
  const std::vector<Outcome> outcomes = all_gather(mine);
  int followed = -1;
  int failed = -1;
  for (int r = size() - 1; r >= 0; --r) {
    if (outcomes[static_cast<std::size_t>(r)] == Outcome::kFollowed) followed = r;
    if (outcomes[static_cast<std::size_t>(r)] == Outcome::kFailed) failed = r;
  }
  if (failed < 0 && followed < 0) return;
  state_->leaving_together = true;
  if (rank() == failed) std::rethrow_exception(error);
  throw PeerError(fmt::format("rank {} failed", failed >= 0 ? failed : followed));
}

bool World::leaving_together() const { return state_->leaving_together; }

void World::abort(int exit_code) {
  std::cout.flush();
  std::cerr.flush();
  // Not fflush(nullptr): it waits for the lock of every FILE, also of one that another thread is
  // blocked in (stdin).
  std::fflush(stdout);
  std::fflush(stderr);
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);  // in case the library returns
}

std::unique_ptr<Communicator> World::make_cpu_communicator() {
  state_->leaving_together = false;
  return std::make_unique<MpiCommunicator>();
}

}  // namespace zi
