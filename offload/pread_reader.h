#pragma once

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <span>

#include "offload/block_reader.h"

namespace zi {

using PreadFunction = std::function<ssize_t(int fd, void* dst, std::size_t bytes, off_t offset)>;

/// Reads with `threads` threads that call pread (writes: pwrite). `pread` is replaced by tests that
/// inject failures.
std::unique_ptr<BlockReader> make_pread_reader(const BlockSource& source,
                                               std::span<std::byte> staging, std::size_t slot_bytes,
                                               int threads, PreadFunction pread = {});

}  // namespace zi
