#include "comm/mpi_communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstring>

#include "comm/host_gather.h"
#include "comm/mpi_support.h"
#include "comm/rank_group_state.h"
#include "zero_infer/cpu_stream.h"
#include "zero_infer/error.h"

namespace zi {

// Open MPI over shared memory, 2 ranks, 400 MB a rank, on a busy 2-core machine, GB/s received for
// pieces of 1, 16 and 256 MiB: 1.6, 1.9, 1.1 with single-copy access between the processes; 0.8,
// 0.6, 0.3 without.
const std::size_t MpiCommunicator::kPieceBytes = std::size_t{16} << 20;

struct MpiCommunicator::State {
  State(MPI_Comm parent, const RankHosts& of, std::size_t piece)
      : comm(MpiComm::duplicate(parent)),
        rank(static_cast<std::size_t>(comm.rank())),
        size(static_cast<std::size_t>(comm.size())),
        away(size - of.beside(comm.rank()).size()),
        piece_bytes(piece),
        shares_hosts(of.count() > 1 && of.most_on_a_host() > 1),
        host_gather(comm.get(), of) {}

  /// A block came from each rank of another host.
  void count_blocks(std::size_t bytes) { network_bytes += away * bytes; }

  MpiComm comm;
  std::size_t rank;
  std::size_t size;
  std::size_t away;  // ranks on other hosts
  std::size_t piece_bytes;
  bool shares_hosts;  // there are several hosts, and several ranks on one
  HostGather host_gather;
  std::atomic<std::uint64_t> network_bytes = 0;
};

namespace {

/// A piece of a rank's block whose neighbours in an array of this type lie one whole block further
/// on: piece r of a collective is then at r * stride. The count is always 1, so that no int holds a
/// size or a product of sizes.
class PieceType {
 public:
  PieceType(std::size_t bytes, std::size_t stride) {
    MPI_Datatype contiguous = MPI_DATATYPE_NULL;
    ZI_MPI(MPI_Type_contiguous, static_cast<int>(bytes), MPI_BYTE, &contiguous);
    const int code = MPI_Type_create_resized(contiguous, 0, static_cast<MPI_Aint>(stride), &type_);
    MPI_Type_free(&contiguous);
    check_mpi(code, "MPI_Type_create_resized");
    ZI_MPI(MPI_Type_commit, &type_);
  }
  ~PieceType() {
    if (type_ != MPI_DATATYPE_NULL) MPI_Type_free(&type_);
  }
  PieceType(const PieceType&) = delete;
  PieceType& operator=(const PieceType&) = delete;
  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

CpuStream& cpu_stream(Stream& stream) {
  auto* cpu = dynamic_cast<CpuStream*>(&stream);
  if (cpu == nullptr) {
    throw Error(
        "the MPI communicator was given a stream of another backend; it works on the CPU backend's "
        "streams");
  }
  return *cpu;
}

/// Calls start(offset, type, &request) for every piece of the blocks and waits for each.
template <typename Start>
void for_each_piece(std::size_t block_bytes, std::size_t piece_bytes, const Start& start) {
  for (std::size_t offset = 0; offset < block_bytes; offset += piece_bytes) {
    const PieceType type(std::min(piece_bytes, block_bytes - offset), block_bytes);
    MPI_Request request = MPI_REQUEST_NULL;
    start(offset, type.get(), &request);
    wait_for(request);
  }
}

}  // namespace

MpiCommunicator::MpiCommunicator(RankGroup& ranks, const RankHosts& hosts,
                                 std::size_t piece_bytes) {
  if (piece_bytes == 0 || piece_bytes > INT_MAX) {
    throw Error(
        fmt::format("pieces of {} bytes cannot be sent; use 1 to {}", piece_bytes, INT_MAX));
  }
  if (hosts.ranks() != ranks.size()) {
    throw Error(fmt::format("{} ranks cannot be on the hosts of {}", ranks.size(), hosts.ranks()));
  }
  state_ = std::make_shared<State>(ranks.state_->comm(), hosts, piece_bytes);
}

MpiCommunicator::~MpiCommunicator() = default;

void MpiCommunicator::all_gather(const void* send, void* recv, std::size_t bytes, Stream& stream) {
  cpu_stream(stream).enqueue([state = state_, send, recv, bytes] {
    auto* blocks = static_cast<std::byte*>(recv);
    const auto* own = static_cast<const std::byte*>(send);
    const bool in_place = own == blocks + state->rank * bytes;
    if (bytes == 0 || (state->size == 1 && in_place)) return;
    if (state->size == 1) {
      std::memcpy(blocks, own, bytes);
      return;
    }
    if (state->shares_hosts) {
      if (!in_place) std::memcpy(blocks + state->rank * bytes, own, bytes);
      state->network_bytes += state->host_gather.run(blocks, bytes, state->piece_bytes);
      return;
    }
    for_each_piece(bytes, state->piece_bytes,
                   [&](std::size_t offset, MPI_Datatype type, MPI_Request* request) {
                     ZI_MPI(MPI_Iallgather, in_place ? MPI_IN_PLACE : own + offset, 1, type,
                            blocks + offset, 1, type, state->comm.get(), request);
                   });
    state->count_blocks(bytes);
  });
}

void MpiCommunicator::all_to_all(const void* send, void* recv, std::size_t bytes, Stream& stream) {
  if (send == recv && bytes != 0) throw Error("all_to_all cannot work in place: send equals recv");
  cpu_stream(stream).enqueue([state = state_, send, recv, bytes] {
    auto* to = static_cast<std::byte*>(recv);
    const auto* from = static_cast<const std::byte*>(send);
    if (bytes == 0) return;
    if (state->size == 1) {
      std::memcpy(to, from, bytes);
      return;
    }
    for_each_piece(bytes, state->piece_bytes,
                   [&](std::size_t offset, MPI_Datatype type, MPI_Request* request) {
                     ZI_MPI(MPI_Ialltoall, from + offset, 1, type, to + offset, 1, type,
                            state->comm.get(), request);
                   });
    state->count_blocks(bytes);
  });
}

std::uint64_t MpiCommunicator::network_bytes() const { return state_->network_bytes; }

}  // namespace zi
