#include "zero_infer/world.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <mutex>
#include <new>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "comm/mpi_communicator.h"
#include "comm/mpi_support.h"
#include "comm/rank_group_state.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

constexpr int kStringTag = 1;
constexpr std::chrono::milliseconds kLongWaitSleep(5);

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

/// Says why this rank failed while it still waits for others, whose steps may take minutes: to load
/// weights, say, or to write a shard file. Nothing where they end soon: the failure is then told as
/// all leave.
class FailureNotice {
 public:
  explicit FailureNotice(const std::exception_ptr& error)
      : thread_([this, error](const std::stop_token& stop) {
          std::unique_lock lock(mutex_);
          if (wake_.wait_for(lock, stop, kPatience, [&] { return stop.stop_requested(); })) return;
          try {
            std::rethrow_exception(error);
          } catch (const std::exception& e) {
            log_warning(fmt::format(
                "this rank failed, and the job ends once the others are done with this step: {}",
                e.what()));
          }
        }) {}

 private:
  static constexpr std::chrono::seconds kPatience{2};
  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::jthread thread_;  // last: it uses the others
};

constexpr const char* kPretendHosts = "ZERO_INFER_PRETEND_HOSTS";

/// What it says of each rank, where it is set.
std::optional<std::vector<int>> pretended_hosts(int ranks) {
  const char* const text = std::getenv(kPretendHosts);
  if (text == nullptr) return std::nullopt;
  std::vector<int> hosts;
  const char* const end = text + std::strlen(text);
  for (const char* at = text; at <= end; ++at) {  // past each number and its comma
    int host = 0;
    const auto [rest, error] = std::from_chars(at, end, host);
    if (error != std::errc() || (rest != end && *rest != ',')) {
      hosts.clear();
      break;
    }
    hosts.push_back(host);
    at = rest;
  }
  if (std::ssize(hosts) != ranks) {
    throw ConfigError(fmt::format(
        "{} is `{}`, which is not one number for each of {} ranks, such as 0,0,1; unset it",
        kPretendHosts, text, ranks));
  }
  return hosts;
}

}  // namespace

/// MPI between its initialisation and its end.
class World::Session {
 public:
  Session(int* argc, char*** argv) {
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
  ~Session() { finish(); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

 private:
  void finish() {
    if (open_) MPI_Finalize();
    open_ = false;
  }
  bool open_ = false;
};

World::World(int* argc, char*** argv)
    : session_(std::make_unique<Session>(argc, argv)),
      exceptions_at_start_(std::uncaught_exceptions()) {
  state_ = std::make_unique<State>(MpiComm::duplicate(MPI_COMM_WORLD));
  State& s = *state_;

  MPI_Comm shared = MPI_COMM_NULL;
  ZI_MPI(MPI_Comm_split_type, s.comm(), MPI_COMM_TYPE_SHARED, s.rank, MPI_INFO_NULL, &shared);
  const MpiComm local(shared);
  local_rank_ = local.rank();
  local_size_ = local.size();
  int first = s.rank;
  ZI_MPI(MPI_Bcast, &first, 1, MPI_INT, 0, local.get());

  std::array<char, MPI_MAX_PROCESSOR_NAME> host{};
  int length = 0;
  ZI_MPI(MPI_Get_processor_name, host.data(), &length);
  s.host.assign(host.data(), static_cast<std::size_t>(length));
  std::vector<int> host_numbers = all_gather(first);
  std::vector<int> mine;
  all_or_none([&] {
    if (auto pretended = pretended_hosts(s.size)) mine = std::move(*pretended);
  });
  // Rank 0's counts: mpirun may have set another one elsewhere, or none.
  const std::vector<int> pretended = all_gather(mine.empty() ? 0 : 1);
  if (pretended.front() != 0) {
    mine.resize(static_cast<std::size_t>(s.size));
    const std::vector<int> all = all_gather(mine);
    host_numbers.assign(all.begin(), all.begin() + s.size);
  }
  s.hosts = RankHosts(host_numbers);
  if (s.rank == 0 && std::getenv(kPretendHosts) != nullptr) {
    log_warning(fmt::format("{} is set: ranks are taken to be on {} hosts", kPretendHosts,
                            s.hosts.count()));
  }
}

World::~World() {
  State& s = *state_;
  const bool unwinding = std::uncaught_exceptions() > exceptions_at_start_;
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
  state_.reset();
}

int World::local_rank() const { return local_rank_; }
int World::local_size() const { return local_size_; }

RankGroup::RankGroup() = default;
RankGroup::RankGroup(std::unique_ptr<State> state) : state_(std::move(state)) {}
RankGroup::~RankGroup() = default;

int RankGroup::rank() const { return state_->rank; }
int RankGroup::size() const { return state_->size; }
const std::string& RankGroup::host() const { return state_->host; }
const RankHosts& RankGroup::hosts() const { return state_->hosts; }

void RankGroup::all_gather_bytes(const void* send, void* recv, std::size_t bytes) {
  state_->leaving_together = false;
  // Some MPI libraries compute rank * count in an int.
  checked_count(bytes * static_cast<std::size_t>(state_->size), "an all-gather");
  const int count = static_cast<int>(bytes);
  MPI_Request request = MPI_REQUEST_NULL;
  ZI_MPI(MPI_Iallgather, send, count, MPI_BYTE, recv, count, MPI_BYTE, state_->comm(), &request);
  const bool long_wait = std::exchange(state_->long_wait, false);
  wait_for(request, long_wait ? kLongWaitSleep : Backoff::kLongest);
}

void RankGroup::expect_long_wait() { state_->long_wait = true; }

std::string RankGroup::broadcast(std::string bytes, int root) {
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

std::vector<std::string> RankGroup::gather(std::string_view bytes, int root) {
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

std::string RankGroup::scatter(const std::vector<std::string>& items, int root) {
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

void RankGroup::barrier() {
  state_->leaving_together = false;
  MPI_Request request = MPI_REQUEST_NULL;
  ZI_MPI(MPI_Ibarrier, state_->comm(), &request);
  wait_for(request);
}

void RankGroup::all_or_none(const std::function<void()>& step) {
  Outcome mine = Outcome::kDone;
  std::exception_ptr error;
  std::optional<FailureNotice> notice;
  try {
    step();
  } catch (const PeerError&) {
    mine = Outcome::kFollowed;  // of an all_or_none inside `step`: the rank that failed has the
                                // message
    error = std::current_exception();
  } catch (...) {
    mine = Outcome::kFailed;
    error = as_error();
    if (size() > 1) notice.emplace(error);
  }
  const std::vector<Outcome> outcomes = all_gather(mine);
  notice.reset();
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

bool RankGroup::leaving_together() const { return state_->leaving_together; }

void RankGroup::abort(int exit_code) {
  std::cout.flush();
  std::cerr.flush();
  // Not fflush(nullptr): it waits for the lock of every FILE, also of one that another thread is
  // blocked in (stdin).
  std::fflush(stdout);
  std::fflush(stderr);
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);  // in case the library returns
}

std::unique_ptr<Communicator> RankGroup::make_cpu_communicator() {
  state_->leaving_together = false;
  return std::make_unique<MpiCommunicator>(*this, hosts());
}

std::unique_ptr<RankGroup> RankGroup::split(int number) {
  State& s = *state_;
  s.leaving_together = false;
  MPI_Comm part = MPI_COMM_NULL;
  ZI_MPI(MPI_Comm_split, s.comm(), number, s.rank, &part);
  auto made = std::make_unique<State>(MpiComm(part));
  made->host = s.host;
  std::vector<int> host_numbers;
  const std::vector<int> numbers = all_gather(number);
  for (int r = 0; r < s.size; ++r) {
    if (numbers[static_cast<std::size_t>(r)] == number) host_numbers.push_back(s.hosts.host_of(r));
  }
  made->hosts = RankHosts(host_numbers);
  return std::unique_ptr<RankGroup>(new RankGroup(std::move(made)));
}

}  // namespace zi
