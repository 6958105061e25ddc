#pragma once

#include <memory>

#include "zero_infer/rank_group.h"

namespace zi {

/// The job's ranks, over MPI (thread level MULTIPLE). One object for a process: initialises MPI,
/// finalises it when destroyed (collective). If it is destroyed while an exception ends this rank
/// alone, it aborts the job instead, because finalising would wait for peers that wait for this
/// rank. So `main` catches exceptions while the World lives, and calls `abort`. After all_or_none
/// has thrown everywhere, finalising is safe. A program started without mpirun is a world of one.
///
/// For tests of what several hosts do on one: the environment's ZERO_INFER_PRETEND_HOSTS is a
/// number for each rank (`0,0,1`), and ranks with different ones are taken to be on different hosts
/// by `hosts`. Memory, cores and GPUs are still shared as `local_size` says. Throws ConfigError
/// where it is no such list.
class World : public RankGroup {
 public:
  World(int* argc, char*** argv);
  ~World() override;

  int local_rank() const;  // among the ranks of this machine
  int local_size() const;

 private:
  class Session;
  std::unique_ptr<Session> session_;
  int local_rank_ = 0;
  int local_size_ = 1;
  int exceptions_at_start_ = 0;
};

}  // namespace zi
