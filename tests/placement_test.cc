#include "offload/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

constexpr std::size_t kUnlimited = std::size_t{1} << 60;

std::size_t count(const std::vector<Tier>& tiers, Tier tier) {
  return static_cast<std::size_t>(std::count(tiers.begin(), tiers.end(), tier));
}

std::size_t bytes_in(const std::vector<std::size_t>& sizes, const std::vector<Tier>& tiers,
                     Tier tier) {
  std::size_t sum = 0;
  for (std::size_t u = 0; u < sizes.size(); ++u) sum += tiers[u] == tier ? sizes[u] : 0;
  return sum;
}

/// Longest run of units for which `marked` is false, counted around the end.
template <typename Marked>
std::size_t longest_run(std::size_t n, const Marked& marked) {
  std::size_t longest = 0;
  std::size_t run = 0;
  for (std::size_t i = 0; i < 2 * n; ++i) {
    run = marked(i % n) ? 0 : run + 1;
    longest = std::max(longest, run);
  }
  return std::min(longest, n);
}

/// The most sizes that fit, by trying all subsets.
std::size_t most_by_brute_force(const std::vector<std::size_t>& sizes, std::size_t budget) {
  std::size_t most = 0;
  for (unsigned subset = 0; subset < (1u << sizes.size()); ++subset) {
    std::size_t sum = 0;
    std::size_t members = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if ((subset >> i & 1) == 0) continue;
      sum += sizes[i];
      ++members;
    }
    if (sum <= budget) most = std::max(most, members);
  }
  return most;
}

TEST(Placement, PutsEverythingOnTheDeviceWhenItFits) {
  const std::vector<std::size_t> sizes(24, 100);
  EXPECT_EQ(count(place_units(sizes, {2400, 0, false}), Tier::kDevice), 24u);
  EXPECT_EQ(count(place_units(sizes, {kUnlimited, kUnlimited, true}), Tier::kDevice), 24u);
}

TEST(Placement, PutsEverythingInTheOnlyTierThatIsOpen) {
  const std::vector<std::size_t> sizes(5, 100);
  EXPECT_EQ(count(place_units(sizes, {0, 500, false}), Tier::kHost), 5u);
  EXPECT_EQ(count(place_units(sizes, {0, 0, true}), Tier::kNvme), 5u);
}

TEST(Placement, OfNoUnitsIsEmpty) { EXPECT_TRUE(place_units({}, {0, 0, false}).empty()); }

TEST(Placement, FillsBothBudgetsAsFarAsWholeUnitsGo) {
  for (std::size_t n = 1; n <= 40; ++n) {
    const std::vector<std::size_t> sizes(n, 100);
    for (std::size_t device = 0; device <= n; ++device) {
      for (std::size_t host = 0; host <= n; ++host) {
        const auto tiers = place_units(sizes, {device * 100 + 99, host * 100 + 99, true});
        ASSERT_EQ(count(tiers, Tier::kDevice), device);
        ASSERT_EQ(count(tiers, Tier::kHost), std::min(host, n - device));
      }
    }
  }
}

TEST(Placement, LeavesNoRunOfTravellersLongerThanItMustBe) {
  for (std::size_t n = 1; n <= 80; ++n) {
    const std::vector<std::size_t> sizes(n, 100);
    for (std::size_t k = 1; k <= n; ++k) {
      const auto tiers = place_units(sizes, {k * 100, kUnlimited, false});
      // n - k travellers in k gaps (around the end): one gap has at least the rounded-up mean.
      ASSERT_EQ(longest_run(n, [&](std::size_t u) { return tiers[u] == Tier::kDevice; }),
                (n - k + k - 1) / k)
          << k << " of " << n;
      if (k < n) {
        // Residents in n - k gaps between travellers: they too stand evenly.
        ASSERT_EQ(longest_run(n, [&](std::size_t u) { return tiers[u] != Tier::kDevice; }),
                  (k + (n - k) - 1) / (n - k))
            << k << " of " << n;
      }
    }
  }
}

TEST(Placement, SpreadsHostUnitsAmongThoseThatAreNotOnTheDevice) {
  const std::vector<std::size_t> sizes(70, 100);
  const auto tiers = place_units(sizes, {2000, 2500, true});
  std::vector<Tier> rest;
  for (Tier tier : tiers) {
    if (tier != Tier::kDevice) rest.push_back(tier);
  }
  ASSERT_EQ(rest.size(), 50u);
  EXPECT_EQ(longest_run(rest.size(), [&](std::size_t i) { return rest[i] == Tier::kHost; }), 1u);
}

TEST(Placement, NeverExceedsABudgetAndPlacesTheMostUnitsWhenSizesDiffer) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const std::size_t n = 1 + random_bits(seed, 0, 0) % 10;
    std::vector<std::size_t> sizes;
    for (std::size_t u = 0; u < n; ++u) sizes.push_back(random_bits(seed, 1, u) % 50);
    const TierBudgets budgets{random_bits(seed, 2, 0) % 300, random_bits(seed, 2, 1) % 200, true};
    const auto tiers = place_units(sizes, budgets);
    ASSERT_EQ(tiers.size(), n);
    ASSERT_LE(bytes_in(sizes, tiers, Tier::kDevice), budgets.device_bytes);
    ASSERT_LE(bytes_in(sizes, tiers, Tier::kHost), budgets.host_bytes);
    ASSERT_EQ(count(tiers, Tier::kDevice), most_by_brute_force(sizes, budgets.device_bytes));
    std::vector<std::size_t> rest;
    for (std::size_t u = 0; u < n; ++u) {
      if (tiers[u] != Tier::kDevice) rest.push_back(sizes[u]);
    }
    ASSERT_EQ(count(tiers, Tier::kHost), most_by_brute_force(rest, budgets.host_bytes));
    ASSERT_EQ(tiers, place_units(sizes, budgets)) << "not a pure function";
  }
}

TEST(Placement, RefusesWhatDoesNotFitWithTheNumbersAndTheWayOut) {
  const std::vector<std::size_t> sizes(10, std::size_t{1} << 30);
  const TierBudgets budgets{std::size_t{3} << 30, std::size_t{5} << 30, false};
  try {
    place_units(sizes, budgets);
    FAIL() << "no exception";
  } catch (const ConfigError& e) {
    const std::string message = e.what();
    for (const char* part : {"10.0 GiB", "3.00 GiB", "5.00 GiB", "2.00 GiB", "--gpu-weight-budget",
                             "--cpu-weight-budget", "--nvme-offload-path"}) {
      EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
    }
  }
  EXPECT_NO_THROW(place_units(sizes, {budgets.device_bytes, budgets.host_bytes, true}));
}

}  // namespace
}  // namespace zi
