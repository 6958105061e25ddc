#include "offload/nvme_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <utility>

#include "offload/block_reader.h"
#include "offload/block_reader_choice.h"
#include "offload/device_clock.h"
#include "offload/extent_checker.h"
#include "offload/shard_file.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr int kMostDepth = 1024;

/// Bytes of one staging slot: an extent, or less when every shard is smaller.
std::size_t slot_bytes_of(const ShardHeader& header) {
  std::size_t longest = kPageBytes;
  for (const ShardUnit& unit : header.units) longest = std::max(longest, unit.bytes);
  return std::min(header.extent_bytes, longest);
}

/// Opens the file, with a header that knows only of the units that are to be read, in the sizes
/// that their places have room for.
OpenShardFile open_for_job(const std::filesystem::path& shard_file, const ShardFileKey& key,
                           std::span<const ShardSize> shards, std::size_t extent_bytes) {
  OpenShardFile opened = OpenShardFile::open(shard_file);
  opened.check_key(key, extent_bytes);
  if (!opened.holds(shards)) {
    throw IoError(opened.path +
                  ": the shard file lacks units that this job reads from it: another file took its "
                  "place; start again");
  }
  std::erase_if(opened.header.units, [&](const ShardUnit& unit) {
    return std::ranges::find(shards, unit.unit, &ShardSize::unit) == shards.end();
  });
  return opened;
}

std::size_t checked_depth(const NvmeOptions& options) {
  if (options.depth < 1 || options.depth > kMostDepth) {
    throw ConfigError(
        fmt::format("{} reads in flight cannot be used; use 1 to {}", options.depth, kMostDepth));
  }
  if (options.spare < 0)
    throw ConfigError("the staging memory cannot have fewer slots than reads in flight");
  return static_cast<std::size_t>(options.depth);
}

}  // namespace

/// Extents are read, finished and copied in one order, so the staging is used as a circle: extent
/// number s (counted over all requests) goes through slot s % slots, which is free as soon as the
/// copy and the check of extent s - slots are done. There are more slots than reads in flight:
/// storage gets its next read as soon as one has arrived, while that one is still being checked (by
/// a thread of its own) and copied. A unit is handed on when all of its extents are checked.
struct NvmeStore::State {
  struct Request {
    const ShardUnit* unit;
    std::size_t submitted = 0;  // extents
    double begin = 0;           // when the first of them was, on the host's clock
  };

  State(Device& its_device, const std::filesystem::path& shard_file, const ShardFileKey& key,
        std::span<const ShardSize> its_shards, const NvmeOptions& options)
      : device(its_device),
        shards(open_for_job(shard_file, key, its_shards, options.extent_bytes)),
        depth(checked_depth(options)),
        slots(options.slots()),
        slot_bytes(slot_bytes_of(shards.header)) {
    direct = options.allow_direct && enable_direct_reads(shards.file.get(), shards.path);
    staging = device.allocate_pinned(slots * slot_bytes);
    for (std::size_t i = 0; i < slots; ++i) copied.push_back(device.make_event());
    reader = make_block_reader({shards.file.get(), shards.path, direct}, staging.span(), slot_bytes,
                               options.allow_io_uring);
    checker = std::make_unique<ExtentChecker>(shards.path);
  }

  ~State() {
    checker.reset();
    reader.reset();  // waits for the reads in flight
    for (const auto& event : copied) {
      try {
        event->synchronize();
      } catch (const Error&) {
        // The device has failed: it no longer copies anything, and the streams report it.
      }
    }
  }

  std::byte* slot(std::uint64_t extent) const {
    return staging.data() + extent % slots * slot_bytes;
  }

  void submit_next() {
    Request& request = requests[next_request];
    const ShardExtent extent = shards.header.extent(*request.unit, request.submitted);
    if (request.submitted == 0) request.begin = host_seconds();
    reader->start(submitted % slots, extent.offset, extent.bytes);
    ++submitted;
    if (++request.submitted == shards.header.extent_count(*request.unit)) ++next_request;
  }

  /// Starts what there are free slots for.
  void submit_ready() {
    while (next_request < requests.size() && submitted - arrived < depth &&
           submitted - checker->checked() < slots && copied[submitted % slots]->reached()) {
      submit_next();
    }
  }

  void start(int unit) {
    const ShardUnit* found = shards.header.find(unit);
    if (found == nullptr) {
      throw Error(fmt::format("unit {} is not in shard file {}", unit, shards.path));
    }
    requests.push_back({found});
    submit_ready();
  }

  void finish(int unit, std::byte* dst, Stream& copies) {
    if (requests.empty()) start(unit);
    if (requests.front().unit->unit != unit) {
      throw Error(fmt::format("unit {} cannot be finished: the read of unit {} was started before",
                              unit, requests.front().unit->unit));
    }
    const ShardUnit& shard = *requests.front().unit;
    for (std::size_t i = 0; i < shards.header.extent_count(shard); ++i) {
      submit_ready();
      if (submitted == finished) {
        // Nothing is in flight and no slot is free: the oldest copy and check come first.
        if (submitted >= slots) checker->wait(submitted - slots + 1);
        copied[submitted % slots]->synchronize();
        submit_next();
      }
      const ShardExtent extent = shards.header.extent(shard, i);
      const std::span<const std::byte> bytes(slot(finished), extent.bytes);
      reader->wait(finished % slots);
      ++arrived;
      read.end = host_seconds();
      if (i == 0) read = {requests.front().begin, read.end, read.end};
      submit_ready();
      checker->check(extent, unit, bytes);
      device.copy(dst + i * shards.header.extent_bytes, bytes.data(), bytes.size(), copies);
      copies.record(*copied[finished % slots]);
      ++finished;
    }
    checker->wait(finished);
    requests.pop_front();
    --next_request;  // all of the first request was submitted
    submit_ready();
  }

  /// Runs a call unless an earlier one has failed.
  template <typename Call>
  void guarded(const Call& call) {
    if (failure) std::rethrow_exception(failure);
    try {
      call();
    } catch (...) {
      failure = std::current_exception();
      throw;
    }
  }

  Device& device;
  OpenShardFile shards;
  std::size_t depth;
  std::size_t slots;
  std::size_t slot_bytes;
  bool direct = false;
  Buffer staging;
  std::vector<std::unique_ptr<Event>> copied;  // per slot
  std::unique_ptr<BlockReader> reader;
  std::unique_ptr<ExtentChecker> checker;
  std::deque<Request> requests;  // started and not finished, in order
  std::size_t next_request = 0;  // the first with extents that are not submitted
  std::uint64_t submitted = 0;   // extents, over all requests
  std::uint64_t arrived = 0;     // read
  std::uint64_t finished = 0;    // their check and copy enqueued
  ReadTimes read;                // of the unit finished last
  std::exception_ptr failure;
};

NvmeStore::NvmeStore(Device& device, const std::filesystem::path& shard_file,
                     const ShardFileKey& key, std::span<const ShardSize> shards,
                     const NvmeOptions& options)
    : state_(std::make_unique<State>(device, shard_file, key, shards, options)) {}

NvmeStore::~NvmeStore() = default;

void NvmeStore::start_read(int unit) {
  state_->guarded([&] { state_->start(unit); });
}

void NvmeStore::finish_read(int unit, std::byte* dst, Stream& copies) {
  state_->guarded([&] { state_->finish(unit, dst, copies); });
}

ReadTimes NvmeStore::last_read() const { return state_->read; }

std::string NvmeStore::method() const {
  return state_->reader->method() + (state_->direct ? " + O_DIRECT" : ", buffered");
}

double measure_bare_read(Device& device, const std::filesystem::path& shard_file,
                         const NvmeOptions& options, std::size_t bytes) {
  const OpenShardFile shards = OpenShardFile::open(shard_file);
  const std::size_t depth = checked_depth(options);
  const std::size_t slot_bytes = slot_bytes_of(shards.header);
  std::vector<ShardExtent> extents;
  for (const ShardUnit& unit : shards.header.units) {
    for (std::size_t i = 0; i < shards.header.extent_count(unit); ++i) {
      extents.push_back(shards.header.extent(unit, i));
    }
  }
  const bool direct = options.allow_direct && enable_direct_reads(shards.file.get(), shards.path);
  const Buffer staging = device.allocate_pinned(depth * slot_bytes);
  const auto reader = make_block_reader({shards.file.get(), shards.path, direct}, staging.span(),
                                        slot_bytes, options.allow_io_uring);
  std::size_t asked = 0;
  const auto next = [&](std::size_t i) {
    const ShardExtent& extent = extents[i % extents.size()];
    if (i > 0 && asked + extent.bytes > bytes) return BlockRange{};
    asked += extent.bytes;
    return BlockRange{extent.offset, extent.bytes};
  };
  const auto begin = std::chrono::steady_clock::now();
  const std::size_t total = move_blocks(*reader, depth, next);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  return static_cast<double>(total) / seconds.count();
}

}  // namespace zi
