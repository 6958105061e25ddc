#pragma once

#include <fmt/format.h>

#include "zero_infer/error.h"
#include "zero_infer/ops.h"

namespace zi {

/// Throws ConfigError for what Ops::attention does not do.
inline void check_attention_shape(int heads, const KvLayer& kv) {
  if (kv.head_dim > kMostHeadDim) {
    throw ConfigError(fmt::format("attention heads of {} elements are not supported: {} at most",
                                  kv.head_dim, kMostHeadDim));
  }
  if (kv.heads < 1 || heads % kv.heads != 0) {
    throw ConfigError(
        fmt::format("{} heads of keys and values do not divide {} of queries", kv.heads, heads));
  }
}

}  // namespace zi
