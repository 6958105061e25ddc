#include "engine/prefix_router.h"

#include <xxhash.h>

#include <algorithm>
#include <tuple>
#include <utility>

namespace zi {
namespace {

/// Of each whole block, the hash of all bytes up to its end.
std::vector<std::uint64_t> hash_chain(const void* data, std::size_t bytes, std::size_t block_bytes,
                                      std::uint64_t seed) {
  std::vector<std::uint64_t> chain;
  const auto* const first = static_cast<const char*>(data);
  for (std::size_t end = block_bytes; end <= bytes; end += block_bytes) {
    seed = XXH3_64bits_withSeed(first + end - block_bytes, block_bytes, seed);
    chain.push_back(seed);
  }
  return chain;
}

std::vector<std::uint64_t> blocks_of(const Prompt& prompt) {
  if (prompt.text) {
    return hash_chain(prompt.text->data(), prompt.text->size(), PrefixRouter::kBlockBytes, 0);
  }
  constexpr std::size_t kId = sizeof(std::int32_t);
  return hash_chain(prompt.ids->data(), prompt.ids->size() * kId, PrefixRouter::kBlockTokens * kId,
                    1);
}

}  // namespace

std::int64_t PrefixRouter::Blocks::known(std::span<const std::uint64_t> chain) const {
  const auto unknown =
      std::ranges::find_if(chain, [this](std::uint64_t hash) { return !places_.contains(hash); });
  return unknown - chain.begin();
}

void PrefixRouter::Blocks::remember(std::span<const std::uint64_t> chain, std::size_t most) {
  // The first block last: it is forgotten after those that are worth nothing without it.
  for (auto hash = chain.rbegin(); hash != chain.rend(); ++hash) {
    const auto [place, is_new] = places_.try_emplace(*hash);
    if (is_new) {
      place->second = order_.insert(order_.begin(), *hash);
    } else {
      order_.splice(order_.begin(), order_, place->second);
    }
    if (order_.size() > most) {
      places_.erase(order_.back());
      order_.pop_back();
    }
  }
}

PrefixRouter::PrefixRouter(std::size_t ranks, std::int64_t blocks)
    : most_blocks_(static_cast<std::size_t>(std::min(blocks, kMostBlocks))), ranks_(ranks) {}

std::size_t PrefixRouter::route(const Prompt& prompt, std::span<const std::int64_t> free_lanes) {
  const bool remembers = most_blocks_ > 0 && ranks_.size() > 1;
  const std::vector<std::uint64_t> chain =
      remembers ? blocks_of(prompt) : std::vector<std::uint64_t>();
  // A free lane more is worth as much as some blocks that need not be computed.
  const auto worth = [&](std::size_t rank) {
    const std::int64_t free = free_lanes[rank];
    return std::pair(free > 0, ranks_[rank].known(chain) + free * kBlocksOfALane);
  };
  std::size_t best = 0;
  auto most = worth(best);
  for (std::size_t rank = 1; rank < ranks_.size(); ++rank) {
    if (const auto other = worth(rank); other > most)
      std::tie(best, most) = std::tuple(rank, other);
  }
  if (remembers) ranks_[best].remember(chain, most_blocks_);
  return best;
}

}  // namespace zi
