#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "offload/block_reader.h"

namespace zi {

/// Reads through io_uring, with the staging's slots as registered buffers and the file registered.
/// It does without whatever the kernel refuses of that: set-up flags of newer kernels, buffers
/// above the limit of locked memory. Throws IoError `io_uring is refused by the kernel (EPERM:
/// ...)` when it gives no ring at all.
std::unique_ptr<BlockReader> make_io_uring_reader(const BlockSource& source,
                                                  std::span<std::byte> staging,
                                                  std::size_t slot_bytes);

}  // namespace zi
