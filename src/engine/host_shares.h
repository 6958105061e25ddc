#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace zi {

/// Which share of the rows of matrices in its memory the host multiplies, by the rows of a product.
class HostShares {
 public:
  struct Point {
    std::int64_t rows = 1;
    double share = 0;  // from 0 to 1
  };

  /// None of them.
  HostShares() = default;
  /// The same for any number of rows.
  explicit HostShares(double share) : points_{{1, share}} {}
  /// Between these points, which are by ascending rows, straight lines; beyond them as the nearest.
  explicit HostShares(std::vector<Point> points) : points_(std::move(points)) {}

  double at(std::int64_t rows) const;
  const std::vector<Point>& points() const { return points_; }

 private:
  std::vector<Point> points_;
};

}  // namespace zi
