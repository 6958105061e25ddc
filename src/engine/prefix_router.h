#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "text/prompt.h"

namespace zi {

/// Chooses the rank for each prompt, on rank 0: one that has computed the prompt's beginning,
/// unless others have so much more room that computing it again is better.
///
/// It remembers what it gave to each rank, in blocks of prompts: of tokens where they were given as
/// ids, else of text, which is not cut into tokens here. A rank's memory of it is bounded, and the
/// blocks that were not met for longest are forgotten first, as a rank's own pages are. It is a
/// guess: a wrong one costs time and no answer.
class PrefixRouter {
 public:
  static constexpr std::size_t kBlockTokens = 16;
  static constexpr std::size_t kBlockBytes = 64;  // of text: about as many tokens
  /// A rank may have so many fewer free lanes than another for each of these blocks that it has
  /// computed already.
  static constexpr std::int64_t kBlocksOfALane = 8;
  static constexpr std::int64_t kMostBlocks = 1 << 14;  // remembered of a rank, whatever is asked

  /// `blocks`: to remember of each rank, such as the pages of its KV cache. 0: beginnings do not
  /// matter, and the rank with the most free lanes is chosen.
  PrefixRouter(std::size_t ranks, std::int64_t blocks);

  /// `free_lanes`: of each rank; one has some. Returns a rank that has some.
  std::size_t route(const Prompt& prompt, std::span<const std::int64_t> free_lanes);

 private:
  /// The blocks of one rank, by hashes of all that is before their ends.
  class Blocks {
   public:
    /// How many of the first ones are known.
    std::int64_t known(std::span<const std::uint64_t> chain) const;
    void remember(std::span<const std::uint64_t> chain, std::size_t most);

   private:
    std::list<std::uint64_t> order_;  // the last met first
    std::unordered_map<std::uint64_t, std::list<std::uint64_t>::iterator> places_;
  };

  std::size_t most_blocks_;
  std::vector<Blocks> ranks_;
};

}  // namespace zi
