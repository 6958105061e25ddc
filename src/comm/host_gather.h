#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "comm/mpi_support.h"
#include "zero_infer/rank_hosts.h"

namespace zi {

/// An all-gather in place over ranks of several hosts that takes each block into a host once,
/// instead of once for each of its ranks: of a block from elsewhere each of a host's k ranks brings
/// one of k slices over the network, and passes it on to the others through the host's memory. So
/// all of its ranks receive at once, and none has more to do than another: one leader for a host
/// would bring everything alone, at the rate of one connection and one core, and the others would
/// wait for all of it. Hosts may have different numbers of ranks, in any order.
///
/// A block travels in pieces: while slices of one are passed on inside the hosts, those of the next
/// are on the network.
class HostGather {
 public:
  /// `comm` outlives it.
  HostGather(MPI_Comm comm, const RankHosts& hosts);

  /// Collective. blocks (ranks, bytes), this rank's own in its place. Pieces of at most
  /// `piece_bytes`, which fit an int. Returns the bytes that this rank received over the network.
  std::uint64_t run(std::byte* blocks, std::size_t bytes, std::size_t piece_bytes) const;

 private:
  struct Piece;
  /// Starts to bring this rank's slices of the other hosts' blocks, and to send them its own.
  std::vector<MPI_Request> start_between_hosts(const Piece& piece, std::uint64_t& received) const;
  /// Starts to exchange these slices, and own blocks, with the ranks of this host.
  std::vector<MPI_Request> start_inside_host(const Piece& piece) const;

  MPI_Comm comm_;
  RankHosts hosts_;
  int rank_;
};

}  // namespace zi
