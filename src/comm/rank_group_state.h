#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

#include "comm/mpi_support.h"
#include "zero_infer/error.h"
#include "zero_infer/rank_group.h"

namespace zi {

struct RankGroup::State {
  explicit State(MpiComm comm) : control(std::move(comm)) {
    rank = control.rank();
    size = control.size();
  }

  MPI_Comm comm() const { return control.get(); }
  bool on_root(int root) const {
    if (root < 0 || root >= size) {
      throw CommError(fmt::format("rank {} cannot be the root in a world of {}", root, size));
    }
    return rank == root;
  }

  MpiComm control;
  int rank = 0;
  int size = 1;
  std::string host;
  RankHosts hosts = RankHosts::one(1);
  bool long_wait = false;  // of the next all-gather
  bool leaving_together =
      false;  // the last thing that happened here is that all_or_none threw on every rank
};

}  // namespace zi
