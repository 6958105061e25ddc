#include "comm/host_gather.h"

#include <algorithm>

#include "zero_infer/bytes.h"

namespace zi {
namespace {

constexpr int kBetweenHosts = 1, kInsideHost = 2;  // tags
/// Slices begin at multiples of a cache line.
constexpr std::size_t kSliceAlignment = 64;

/// What one of a host's ranks brings of each piece.
struct Slice {
  std::size_t begin;
  std::size_t bytes;  // 0: a short piece is left to the others
};

Slice slice_of(std::size_t piece_bytes, int place, std::size_t ranks) {
  const std::size_t step = align_up((piece_bytes + ranks - 1) / ranks, kSliceAlignment);
  const std::size_t begin = std::min(piece_bytes, static_cast<std::size_t>(place) * step);
  return {begin, std::min(step, piece_bytes - begin)};
}

}  // namespace

/// A part of every rank's block.
struct HostGather::Piece {
  std::byte* blocks;
  std::size_t block_bytes;
  std::size_t offset;  // in each block
  std::size_t bytes;

  std::byte* of(int rank) const {
    return blocks + static_cast<std::size_t>(rank) * block_bytes + offset;
  }
};

HostGather::HostGather(MPI_Comm comm, const RankHosts& hosts) : comm_(comm), hosts_(hosts) {
  ZI_MPI(MPI_Comm_rank, comm, &rank_);
}

std::vector<MPI_Request> HostGather::start_between_hosts(const Piece& piece,
                                                         std::uint64_t& received) const {
  std::vector<MPI_Request> requests;
  const int own_host = hosts_.host_of(rank_);
  const Slice mine =
      slice_of(piece.bytes, hosts_.place_of(rank_), hosts_.ranks_of(own_host).size());
  for (int peer = 0; mine.bytes > 0 && peer < hosts_.ranks(); ++peer) {
    if (hosts_.host_of(peer) == own_host) continue;
    ZI_MPI(MPI_Irecv, piece.of(peer) + mine.begin, static_cast<int>(mine.bytes), MPI_BYTE, peer,
           kBetweenHosts, comm_, &requests.emplace_back(MPI_REQUEST_NULL));
    received += mine.bytes;
  }
  // From the next rank on, so that not all begin with the same one.
  for (int i = 1; i < hosts_.ranks(); ++i) {
    const int peer = (rank_ + i) % hosts_.ranks();
    if (hosts_.host_of(peer) == own_host) continue;
    const Slice theirs = slice_of(piece.bytes, hosts_.place_of(peer), hosts_.beside(peer).size());
    if (theirs.bytes == 0) continue;
    ZI_MPI(MPI_Isend, piece.of(rank_) + theirs.begin, static_cast<int>(theirs.bytes), MPI_BYTE,
           peer, kBetweenHosts, comm_, &requests.emplace_back(MPI_REQUEST_NULL));
  }
  return requests;
}

std::vector<MPI_Request> HostGather::start_inside_host(const Piece& piece) const {
  std::vector<MPI_Request> requests;
  const int own_host = hosts_.host_of(rank_);
  const auto here = hosts_.ranks_of(own_host);
  // Messages between two ranks arrive in the order in which they are sent: blocks by rank. In MPI's
  // types slices of several blocks could be one message, but would be copied once more.
  for (const int peer : here) {
    if (peer == rank_) continue;
    const Slice theirs = slice_of(piece.bytes, hosts_.place_of(peer), here.size());
    const Slice mine = slice_of(piece.bytes, hosts_.place_of(rank_), here.size());
    for (int of = 0; of < hosts_.ranks(); ++of) {
      const bool away = hosts_.host_of(of) != own_host;
      const Slice in = away ? theirs : Slice{0, of == peer ? piece.bytes : 0};
      const Slice out = away ? mine : Slice{0, of == rank_ ? piece.bytes : 0};
      if (in.bytes > 0) {
        ZI_MPI(MPI_Irecv, piece.of(of) + in.begin, static_cast<int>(in.bytes), MPI_BYTE, peer,
               kInsideHost, comm_, &requests.emplace_back(MPI_REQUEST_NULL));
      }
      if (out.bytes > 0) {
        ZI_MPI(MPI_Isend, piece.of(of) + out.begin, static_cast<int>(out.bytes), MPI_BYTE, peer,
               kInsideHost, comm_, &requests.emplace_back(MPI_REQUEST_NULL));
      }
    }
  }
  return requests;
}

std::uint64_t HostGather::run(std::byte* blocks, std::size_t bytes, std::size_t piece_bytes) const {
  std::uint64_t received = 0;
  const auto piece_at = [&](std::size_t offset) {
    return Piece{blocks, bytes, offset, std::min(piece_bytes, bytes - offset)};
  };
  std::vector<MPI_Request> inside;
  std::vector<MPI_Request> between = start_between_hosts(piece_at(0), received);
  for (std::size_t offset = 0; offset < bytes; offset += piece_bytes) {
    const std::size_t next = offset + piece_bytes;
    std::vector<MPI_Request> between_next;
    if (next < bytes) between_next = start_between_hosts(piece_at(next), received);
    wait_for_all(between);
    wait_for_all(inside);
    inside = start_inside_host(piece_at(offset));
    between = std::move(between_next);
  }
  wait_for_all(inside);
  return received;
}

}  // namespace zi
