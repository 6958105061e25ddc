#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "comm/nccl_communicator.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"
#include "zero_infer/nccl.h"

namespace zi {
namespace {

constexpr std::size_t kMostTrialBytes = std::size_t{256} << 20;
constexpr int kWarmUps = 2;
constexpr int kRepeats = 5;
constexpr int kGathersPerRepeat = 2;
/// Copy engines may be this much slower and still win: a product that runs at the same time keeps
/// all SMs.
constexpr double kCopyEngineCredit = 1.03;

/// Collective. Bytes a rank for the trial: all blocks together take a quarter of the memory at
/// most.
std::size_t trial_bytes(RankGroup& ranks, Device& device, std::size_t typical_bytes) {
  std::size_t mine = 0;
  ranks.all_or_none([&] { mine = device.memory().free_bytes; });
  const std::size_t least = std::ranges::min(ranks.all_gather(mine));
  const std::size_t room = least / 4 / static_cast<std::size_t>(ranks.size());
  return std::min({typical_bytes, kMostTrialBytes, room}) / kPageBytes * kPageBytes;
}

/// Collective. Seconds of an all-gather in place, the same on all ranks: the median of the slowest
/// rank's times.
double seconds_of_gather(RankGroup& ranks, Device& device, NcclCommunicator& communicator,
                         std::size_t bytes) {
  const auto count = static_cast<std::size_t>(ranks.size());
  const Buffer blocks = communicator.allocate(device, count * bytes);
  std::byte* const own = blocks.data() + static_cast<std::size_t>(ranks.rank()) * bytes;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Event> start, end;
  ranks.all_or_none([&] {
    stream = device.make_stream("gather trial");
    start = device.make_event();
    end = device.make_event();
  });
  std::vector<double> slowest;
  for (int i = 0; i < kWarmUps + kRepeats; ++i) {
    // Untimed: after it all GPUs start together, however late their hosts were.
    communicator.all_gather(own, blocks.data(), bytes, *stream);
    stream->record(*start);
    for (int g = 0; g < kGathersPerRepeat; ++g) {
      communicator.all_gather(own, blocks.data(), bytes, *stream);
    }
    stream->record(*end);
    stream->synchronize();
    const double mine = device.elapsed_seconds(*start, *end) / kGathersPerRepeat;
    const double of_slowest = std::ranges::max(ranks.all_gather(mine));
    if (i >= kWarmUps) slowest.push_back(of_slowest);
  }
  std::ranges::nth_element(slowest, slowest.begin() + kRepeats / 2);
  return slowest[kRepeats / 2];
}

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(RankGroup& ranks, Device& device,
                                                     std::size_t typical_bytes,
                                                     CommFailure on_failure, Gather gather) {
  const auto build = [&](bool copy_engine) {
    return std::make_unique<NcclCommunicator>(ranks, device,
                                              NcclCommunicator::Options{copy_engine, on_failure});
  };
  // NCCL connects each of its algorithms, and takes memory for it, when a size first chooses it.
  const auto build_kernels = [&] {
    auto kernels = build(false);
    const std::size_t bytes = trial_bytes(ranks, device, typical_bytes);
    if (bytes > 0) seconds_of_gather(ranks, device, *kernels, bytes);
    ranks.barrier();  // a peer that still maps the trial's memory holds it
    return kernels;
  };
  if (ranks.size() == 1) return build(false);
  if (gather == Gather::kPlain) return build_kernels();
  std::string obstacle;
  ranks.all_or_none([&] { obstacle = NcclCommunicator::copy_engine_obstacle(ranks); });
  if (!obstacle.empty()) {
    const std::string text = "NCCL's copy engines are not used: " + obstacle;
    if (ranks.rank() == 0) gather == Gather::kCopyEngine ? log_warning(text) : log_verbose(text);
    return build_kernels();
  }
  auto engines = build(true);
  if (!engines->copy_engine()) {
    engines.reset();
    return build_kernels();
  }
  if (gather == Gather::kCopyEngine) return engines;
  const std::size_t bytes = trial_bytes(ranks, device, typical_bytes);
  if (bytes == 0) return engines;

  auto kernels = build(false);
  const double engine_seconds = seconds_of_gather(ranks, device, *engines, bytes);
  const double kernel_seconds = seconds_of_gather(ranks, device, *kernels, bytes);
  const bool by_engines =
      engines->copy_engine() && engine_seconds <= kCopyEngineCredit * kernel_seconds;
  if (ranks.rank() == 0) {
    const double received = static_cast<double>(bytes) * (ranks.size() - 1);
    log_info(fmt::format(
        "all-gather of {} a rank: {}/s by copy engines, {}/s by kernels; {} are used",
        format_bytes(static_cast<double>(bytes)), format_bytes(received / engine_seconds),
        format_bytes(received / kernel_seconds), by_engines ? "copy engines" : "kernels"));
  }
  (by_engines ? kernels : engines).reset();
  ranks.barrier();  // a peer that still maps the trial's memory holds it
  return by_engines ? std::move(engines) : std::move(kernels);
}

}  // namespace zi
