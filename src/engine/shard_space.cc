#include "engine/shard_space.h"

#include <fmt/format.h>

#include <vector>

#include "offload/shard_file.h"
#include "offload/shard_writer.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Of one rank; plain data for the exchange.
struct Need {
  std::uint64_t bytes;  // to write
  FreeSpace space;
};

}  // namespace

void check_shard_space(World& world, const ShardFilePlan* file, const LoadOptions& options) {
  Need mine{};
  world.all_or_none([&] {
    if (file == nullptr) return;
    mine.bytes = shard_bytes_to_write(*options.nvme_path, file->key, file->shards);
  });
  world.all_or_none([&] {  // no rank's file of a writer that was killed is there any more
    if (mine.bytes > 0) mine.space = free_space(*options.nvme_path);
  });
  const std::vector<Need> all = world.all_gather(mine);
  world.all_or_none([&] {
    if (mine.bytes == 0) return;
    std::uint64_t bytes = 0;
    int ranks = 0;
    for (const int rank : world.hosts().beside(world.rank())) {
      const Need& need = all[static_cast<std::size_t>(rank)];
      if (need.bytes == 0 || need.space.file_system != mine.space.file_system) continue;
      bytes += need.bytes;
      ++ranks;
    }
    if (bytes <= mine.space.bytes) return;
    const auto shown = [](std::uint64_t n) { return format_memory(static_cast<double>(n)); };
    const std::string whose =
        ranks == 1 ? fmt::format("the shard file of rank {} needs {}", world.rank(), shown(bytes))
                   : fmt::format("the shard files of {} ranks on {} need {} together", ranks,
                                 world.host(), shown(bytes));
    throw IoError(fmt::format("{}, {} has {} free{}", whose, options.nvme_path->string(),
                              shown(mine.space.bytes),
                              full_disk_text(other_shards_text(*options.nvme_path, file->key))));
  });
}

}  // namespace zi
