#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace zi {

/// A tensor as the checkpoint names it (without an optional family prefix such as `transformer.`).
struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;  // row-major; a matrix is (out, in)

  std::int64_t elements() const {
    std::int64_t n = 1;
    for (std::int64_t d : shape) n *= d;
    return n;
  }
  bool operator==(const TensorSpec&) const = default;
};

/// The matrices that travel together (sharded), and the small vectors that are replicated.
struct UnitSpec {
  std::string name;                  // `block 3`, `head`
  std::vector<TensorSpec> matrices;  // 2-D, in the order of their use
  std::vector<TensorSpec> vectors;   // kept in float32 on every rank; 1-D but for positions
  // How many matrices each product multiplies side by side, in their order; empty: one each.
  std::vector<int> products = {};
};

/// Everything that a model family needs from a checkpoint. Block units are gathered; the head and
/// the embedding stay where they are, cut by vocabulary rows.
struct ModelSpec {
  std::string prefix;                // tensor names may carry it: `transformer.`
  std::string block_prefix;          // a block's names go on with its number and a dot: `h.`
  std::vector<std::string> ignored;  // ends of names that a checkpoint may hold without use
  std::vector<UnitSpec> blocks;
  UnitSpec head;                    // one matrix (vocabulary, hidden) and the final norm's vectors
  TensorSpec embedding;             // (vocabulary, hidden)
  std::vector<TensorSpec> vectors;  // of the model itself: the embedding's norm, learned positions

  /// Whether the head's matrix is the embedding.
  bool tied() const { return head.matrices.front().name == embedding.name; }
};

}  // namespace zi
