#include "offload/shard_file.h"

#include <fmt/format.h>

#include <cctype>

#include "zero_infer/error.h"

namespace zi {

std::filesystem::path shard_file_path(const std::filesystem::path& directory,
                                      const ShardFileKey& key) {
  std::string name = key.model_name.substr(0, 100);
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '_' && c != '.')
      c = '_';
  }
  if (name.empty() || name.front() == '.') name.insert(0, "model");
  return directory /
         fmt::format("{}-{:016x}-{}-world{}", name, key.model_identity, name_of(key.dtype),
                     key.world) /
         fmt::format("rank-{}.shard", key.rank);
}

void check_shard_key(const ShardHeader& header, const ShardFileKey& key, std::size_t extent_bytes,
                     const std::string& path) {
  const auto differs = [&](const std::string& what) {
    throw IoError(fmt::format("shard file {} was written for {}", path, what));
  };
  if (header.key.world != key.world) {
    differs(fmt::format("{} ranks, this job has {}; remove it or run with -np {}", header.key.world,
                        key.world, header.key.world));
  }
  if (header.key.rank != key.rank) {
    differs(fmt::format("rank {}, this is rank {}; remove it", header.key.rank, key.rank));
  }
  if (header.key.dtype != key.dtype) {
    differs(fmt::format("weights of {}, this job uses {}; remove it", name_of(header.key.dtype),
                        name_of(key.dtype)));
  }
  if (header.key.model_identity != key.model_identity) {
    differs(fmt::format(
        "other weights: model {} ({:016x}), this job runs {} ({:016x}); remove it or use "
        "another directory",
        header.key.model_name, header.key.model_identity, key.model_name, key.model_identity));
  }
  if (header.extent_bytes != extent_bytes) {
    differs(fmt::format("extents of {} bytes, this job reads {}; {}", header.extent_bytes,
                        extent_bytes, kWrittenAnew));
  }
}

}  // namespace zi
