#include <algorithm>

#include "backend/cuda/cuda_attention_shares.cuh"
#include "zero_infer/bytes.h"

namespace zi {

Shares choose_shares(const AttentionArgs& args, const DecodeShape& shape, int heads, int slot_heads,
                     std::int64_t resident, const AttentionMemory& memory) {
  constexpr std::int64_t kLeastContext = 512;  // to be divided: merging costs as much, below
  const std::int64_t keys = context_bound(shape);
  const std::int64_t lines = static_cast<std::int64_t>(std::max(shape.active, 1)) * heads;
  // Rows of prompts are enough for blocks, and have unequal numbers of keys.
  if (keys < kLeastContext || (shape.by_row && lines >= 4 * resident)) return {};
  const std::int64_t units = lines * ceil_div(keys, std::int64_t{kUnitKeys});
  const std::int64_t rounds =
      std::clamp<std::int64_t>(units / (resident * kRoundUnits), 1, kMostRounds);
  const auto slots = static_cast<std::size_t>(2 * slot_heads);  // of a block, with each head's own
  const std::size_t bytes =
      slots * (sizeof(float2) + sizeof(float) * static_cast<std::size_t>(args.head_dim));
  const std::int64_t blocks = std::min({rounds * resident, ceil_div(units, kLeastShare),
                                        static_cast<std::int64_t>(memory.scratch.size() / bytes),
                                        static_cast<std::int64_t>(kAttentionArrivals)});
  auto* const totals = reinterpret_cast<float2*>(memory.scratch.data());
  auto* const sums = reinterpret_cast<float*>(totals + static_cast<std::size_t>(blocks) * slots);
  return {{totals, sums, memory.arrivals, slot_heads}, static_cast<unsigned>(blocks)};
}

}  // namespace zi
