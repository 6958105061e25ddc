#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace zi {

/// A line each, for a shard file that is about to be written to `shard_file`, about folders beside
/// its own that hold shard files of the same model name, type and number of ranks, but of another
/// identity: why they are not used, and that they can be removed. They are never removed here:
/// another job may run on other weights of the same name. `identity` is of the file to be written,
/// and part of its folder's name. Never throws: a folder that cannot be read has nothing to tell.
std::vector<std::string> other_shard_files(const std::filesystem::path& shard_file,
                                           std::uint64_t identity);

}  // namespace zi
