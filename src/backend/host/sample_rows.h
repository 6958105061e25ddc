#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <span>

#include "zero_infer/error.h"
#include "zero_infer/ops.h"
#include "zero_infer/sampler.h"

namespace zi {

/// Throws Error for rows that Ops::sample does not take.
inline void check_sample_rows(std::span<const SampleRow> rows, std::int64_t vocabulary,
                              const SampleResults& results) {
  for (const SampleRow& row : rows) {
    check_sample_row(row, static_cast<std::size_t>(vocabulary));
    if (row.top < 0 || row.top > results.top) {
      throw Error(fmt::format("sample: {} best ids are wanted of a row, there is room for {}",
                              row.top, results.top));
    }
  }
}

}  // namespace zi
