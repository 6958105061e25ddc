#include "comm/together.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <optional>
#include <thread>
#include <vector>

#include "zero_infer/error.h"

namespace zi {
namespace {

using Clock = std::chrono::steady_clock;

enum class Progress : std::int32_t { kRunning, kDone, kFailed };

/// How often the ranks tell each other.
constexpr std::chrono::milliseconds kRound{2};

}  // namespace

void Together::check(RankGroup& ranks) const {
  if (ok()) return;
  ranks.all_or_none([&] {
    if (ranks.rank() == failed_rank) throw CommError(text);
  });
}

Together run_together(RankGroup& ranks, const std::function<void()>& step,
                      const std::function<void(const std::string&)>& on_failure,
                      std::chrono::milliseconds grace) {
  std::string text;  // read here once `own` says kFailed
  std::atomic<Progress> own{Progress::kRunning};
  std::jthread thread([&] {
    Progress end = Progress::kDone;
    try {
      step();
    } catch (const std::exception& e) {
      text = e.what();
      end = Progress::kFailed;
    } catch (...) {
      text = "an exception of unknown type was thrown";
      end = Progress::kFailed;
    }
    own.store(end, std::memory_order_release);
  });

  std::optional<Clock::time_point> failed_since;
  for (;;) {
    const Progress mine = own.load(std::memory_order_acquire);
    const std::vector<Progress> all = ranks.all_gather(mine);
    // All ranks see the same list, so all leave this loop in the same round.
    const auto failed = std::ranges::find(all, Progress::kFailed);
    const int failed_rank = failed == all.end() ? -1 : static_cast<int>(failed - all.begin());
    if (std::ranges::find(all, Progress::kRunning) == all.end()) {
      thread.join();
      if (failed_rank < 0) return {};
      return {failed_rank, ranks.broadcast(std::move(text), failed_rank)};
    }
    if (failed_rank >= 0) {
      if (!failed_since) failed_since = Clock::now();
      if (ranks.rank() == failed_rank && Clock::now() - *failed_since > grace) {
        if (on_failure) on_failure(text);
        ranks.abort(1);
      }
    }
    std::this_thread::sleep_for(kRound);
  }
}

}  // namespace zi
