#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file_descriptor.h"

namespace zi {

/// Sockets that listen and do not block, on each address of a host.
struct ListeningSockets {
  std::vector<FileDescriptor> sockets;  // at least one
  std::uint16_t port = 0;               // of all of them
};

/// `host`: an address (an IPv6 one with or without brackets) or a name; `port` 0: any that is free
/// on all addresses. An address of a name that this machine does not have is left out, as long as
/// there is another one. Throws ConfigError that names the address and port which cannot be had.
ListeningSockets listen_on(const std::string& host, std::uint16_t port);

}  // namespace zi
