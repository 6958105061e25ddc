#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace zi {

/// Counts values by size, as Prometheus reads them.
class Histogram {
 public:
  /// `bounds`: ascending; a bucket holds the values up to its bound.
  explicit Histogram(std::span<const double> bounds)
      : bounds_(bounds.begin(), bounds.end()), counts_(bounds.size() + 1) {}

  void add(double value, std::uint64_t times = 1);
  std::uint64_t count() const { return count_; }
  /// The lines of `name` (`_bucket`, `_sum`, `_count`) in the text format; `labels` is `a="b"` or
  /// empty.
  void write(std::string& out, std::string_view name, std::string_view labels) const;

 private:
  std::vector<double> bounds_;
  std::vector<std::uint64_t> counts_;  // of each bucket alone; the last is beyond all bounds
  double sum_ = 0;
  std::uint64_t count_ = 0;
};

}  // namespace zi
