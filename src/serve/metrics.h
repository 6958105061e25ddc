#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/link.h"
#include "engine/output.h"
#include "serve/histogram.h"
#include "text/result.h"

namespace zi {

/// What GET /metrics says, in Prometheus' text format. Names are vLLM's where they mean the same.
/// Any thread.
class Metrics {
 public:
  Metrics();

  /// What each rank is doing.
  void ranks(std::span<const RankStatus> ranks);
  /// A prompt was answered `seconds` after its request had come. `told`: each of its tokens was
  /// told of by `token`.
  void finished(const Result& result, double seconds, bool told);
  /// A token came so long after the one before it.
  void token(double seconds);
  /// A prompt ended without a result.
  void failed();

  /// What the text needs to know of others.
  struct Others {
    std::string_view model;  // its name
    std::size_t waiting = 0;
    std::uint64_t cancelled_requests = 0;
    /// What each link of a rank can do, in bytes per second, as far as it was measured.
    PerLink<double> limits{};
  };
  std::string text(const Others& others) const;
  std::vector<RankStatus> statuses() const;

 private:
  struct Counts {
    std::vector<RankStatus> ranks;
    std::array<std::uint64_t, 2> finished{};  // kFinishReasons
    std::uint64_t failed = 0;
    Histogram first_token;
    Histogram between_tokens;
    Histogram whole;
    Histogram in_queue;
  };
  static void write_ranks(std::string& out, const Others& others,
                          const std::vector<RankStatus>& ranks);

  mutable std::mutex mutex_;  // held for a copy at most: the pass loop waits for it
  Counts counts_;
};

}  // namespace zi
