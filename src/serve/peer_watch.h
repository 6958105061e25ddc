#pragma once

#include <vector>

#include "base/file_descriptor.h"
#include "zero_infer/world.h"

namespace zi {

/// Notices when another rank of this host is gone, which one that waits for it in a collective does
/// not. Ranks of other hosts are the launcher's to watch.
class PeerWatch {
 public:
  /// Collective. Where the system cannot watch processes (pidfd_open, Linux 5.3), nothing is
  /// noticed.
  explicit PeerWatch(World& world);

  /// The rank of a process that has ended; -1: none has. Any thread, does not wait.
  int gone() const;

 private:
  struct Peer {
    int rank;
    FileDescriptor process;
  };
  std::vector<Peer> peers_;
};

}  // namespace zi
