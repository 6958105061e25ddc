#pragma once

#include <chrono>

namespace zi {

/// Open MPI's mpirun ends when the daemons on all hosts have ended, and one on a host that does not
/// answer never says so: from `patience` on, the mpirun that has started this process is killed.
/// Its daemons on other hosts end by themselves when they lose it. Does nothing where mpirun runs
/// on another host, or another launcher has started this process. A child process waits: MPI_Abort
/// ends this one. Any thread.
void end_launcher_after(std::chrono::seconds patience);

}  // namespace zi
