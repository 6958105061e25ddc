#include "engine/host_shares.h"

#include <algorithm>

namespace zi {

double HostShares::at(std::int64_t rows) const {
  if (points_.empty()) return 0;
  const auto above =
      std::ranges::find_if(points_, [rows](const Point& p) { return p.rows >= rows; });
  if (above == points_.end()) return points_.back().share;
  if (above == points_.begin()) return above->share;
  const Point& below = *(above - 1);
  const double part =
      static_cast<double>(rows - below.rows) / static_cast<double>(above->rows - below.rows);
  return below.share + part * (above->share - below.share);
}

}  // namespace zi
