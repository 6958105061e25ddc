#pragma once

#include <span>

#include "zero_infer/device.h"

namespace zi {

/// The free memory of this host (MemAvailable) and all of it (MemTotal), limits of control groups
/// included. Throws IoError when /proc cannot be read.
MemoryInfo read_host_memory();

/// Anonymous memory of `bytes`, page-aligned and with huge pages where the kernel gives them, whose
/// pages are taken by up to `threads` threads before this returns, on the NUMA node `numa_node` if
/// there is one of that number (-1: anywhere). Throws ConfigError with the numbers when there is
/// not enough.
Buffer allocate_host(std::size_t bytes, int threads = 1, int numa_node = -1);

/// The same without taking the pages.
Buffer map_host(std::size_t bytes, int numa_node = -1);

/// Takes the pages of a part of mapped memory with up to `threads` threads. Throws as
/// allocate_host.
void take_host_pages(std::span<std::byte> part, int threads = 1);

}  // namespace zi
