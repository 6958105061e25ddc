#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "offload/block_reader.h"

namespace zi {

/// io_uring where it is allowed and the kernel gives it, else pread with a warning that says why.
/// The staging (4096-aligned, a multiple of `slot_bytes`) is cut into slots, one for each read in
/// flight.
std::unique_ptr<BlockReader> make_block_reader(const BlockSource& source,
                                               std::span<std::byte> staging, std::size_t slot_bytes,
                                               bool allow_io_uring);

}  // namespace zi
