#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "base/file_descriptor.h"

namespace zi {

/// Where rank 0 listens for the other ranks, and how both know each other. Hosts have several
/// addresses, and the same one may be another machine's elsewhere (that of a bridge for containers,
/// loopback): the one who connects tries all of them, and goes on with the one that answers with
/// the job's token.
struct BeatInvitation {
  static constexpr std::size_t kTokenBytes = 16;

  std::string server_token;  // what rank 0 says first
  std::string rank_token;    // what a rank answers, with its number
  std::uint16_t port = 0;
  std::vector<std::string> addresses;  // IPv4 and IPv6, as text

  std::string to_bytes() const;
  /// Throws CommError for what to_bytes has not made.
  static BeatInvitation from_bytes(const std::string& bytes);
};

/// Rank 0's end of the connections.
class BeatListener {
 public:
  /// Listens at a free port of every address of this host. Throws IoError.
  BeatListener();

  const BeatInvitation& invitation() const { return invitation_; }
  /// Waits until all ranks from 1 to `ranks` - 1 have connected, or until `end`. Non-blocking
  /// sockets by rank; not open for those who did not come. Who connects without the token is
  /// dropped. Main thread.
  std::vector<FileDescriptor> accept(int ranks, std::chrono::steady_clock::time_point end);

 private:
  FileDescriptor socket_;
  BeatInvitation invitation_;
};

/// Connects this rank to rank 0. A non-blocking socket; not open when none of the addresses is
/// rank 0's by `end`.
FileDescriptor connect_beats(const BeatInvitation& invitation, int rank,
                             std::chrono::steady_clock::time_point end);

}  // namespace zi
