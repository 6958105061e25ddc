#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/file_descriptor.h"

namespace zi {

/// Where rank 0 listens for the other ranks, and how both know each other. Hosts have several
/// addresses, and the same one may be another machine's elsewhere (that of a bridge for
/// containers): the one who connects tries all of them, and goes on with the first that shows to be
/// this job's rank 0. Each side asks with random bytes, and the other answers with a keyed hash of
/// them: who listens or connects by chance, or to find out, learns nothing of the secret. What is
/// said afterwards is not encrypted.
struct BeatInvitation {
  static constexpr std::size_t kSecretBytes = 32;

  std::string secret;  // of this job
  std::uint16_t port = 0;
  std::vector<std::string> addresses;  // of rank 0's host: IPv4 and IPv6, as text

  std::string to_bytes() const;
  /// Throws CommError for what to_bytes has not made.
  static BeatInvitation from_bytes(const std::string& bytes);
  /// For a rank of rank 0's host, which reaches it by loopback as well.
  BeatInvitation with_loopback() const;
};

/// Rank 0's end of the connections.
class BeatListener {
 public:
  /// Listens at a free port of every address of this host. Throws IoError.
  BeatListener();

  const BeatInvitation& invitation() const { return invitation_; }
  /// Waits until all ranks from 1 to `ranks` - 1 have connected, or until `end`. Non-blocking
  /// sockets by rank; not open for those who did not come. Who connects without the secret is
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

/// The address at the other end, as text; empty where it has none.
std::string address_of_peer(const FileDescriptor& socket);

}  // namespace zi
