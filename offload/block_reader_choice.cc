#include "offload/block_reader_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "offload/io_uring_reader.h"
#include "offload/pread_reader.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// Enough to keep a disk busy with reads of MiBs.
constexpr std::size_t kMostPreadThreads = 4;

}  // namespace

std::unique_ptr<BlockReader> make_block_reader(const BlockSource& source,
                                               std::span<std::byte> staging, std::size_t slot_bytes,
                                               bool allow_io_uring) {
  std::string refusal;
  if (allow_io_uring) {
    try {
      return make_io_uring_reader(source, staging, slot_bytes);
    } catch (const IoError& error) {
      refusal = error.what();
    }
  }
  const std::size_t threads = std::min(staging.size() / slot_bytes, kMostPreadThreads);
  auto reader = make_pread_reader(source, staging, slot_bytes, static_cast<int>(threads));
  if (!refusal.empty()) {
    log_warning(fmt::format("{}; {} with {} threads is used", refusal, reader->method(), threads));
  }
  return reader;
}

}  // namespace zi
