#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace zi {

/// Byte-pair encoding by merge rank (Sennrich et al. 2016) over bytes or characters. Immutable once
/// filled.
class Bpe {
 public:
  enum class Units { kBytes, kCharacters };
  Units units = Units::kBytes;
  /// Ids of the 256 single bytes, below 0 where there is none: the byte is left out. For
  /// characters: of those that stand for the bytes of a character that has no id.
  std::array<std::int32_t, 256> byte_ids{};
  /// Ids of the characters, each by its UTF-8 bytes.
  std::unordered_map<std::string, std::int32_t> characters;
  /// What a character becomes that has no id and no bytes.
  std::optional<std::int32_t> unknown;
  /// One unknown token for neighbours of them.
  bool fuse_unknown = false;
  /// Whole pieces that are one token whatever the merges say (`ignore_merges`); mostly empty.
  std::unordered_map<std::string, std::int32_t> whole;

  /// Ids `left` and `right` side by side become `merged`; lower ranks first, and the last rank
  /// given to a pair counts.
  void add_merge(std::int32_t left, std::int32_t right, std::int32_t rank, std::int32_t merged) {
    merges_[key(left, right)] = {rank, merged};
  }
  void reserve(std::size_t merges) { merges_.reserve(merges); }

  /// Memory of an encoder, to be used again for the next piece.
  struct Scratch;

  /// Appends the ids of one piece: lowest rank first, leftmost first among equals. n log n for n
  /// bytes. The piece is valid UTF-8 where the units are characters.
  void encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const;

 private:
  struct Merge {
    std::int32_t rank;
    std::int32_t merged;
  };
  static std::uint64_t key(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
           static_cast<std::uint32_t>(right);
  }
  const Merge* find(std::int32_t left, std::int32_t right) const {
    const auto it = merges_.find(key(left, right));
    return it == merges_.end() ? nullptr : &it->second;
  }
  void add_units(std::string_view piece, Scratch& scratch) const;
  bool add_bytes(std::string_view character, Scratch& scratch) const;
  void push_candidate(std::uint32_t left, Scratch& scratch) const;

  struct Mix {
    std::size_t operator()(std::uint64_t key) const;
  };
  std::unordered_map<std::uint64_t, Merge, Mix> merges_;
};

struct Bpe::Scratch {
  struct Symbol {
    std::int32_t id;  // below 0: merged into its left neighbour
    std::uint32_t previous;
    std::uint32_t next;
  };
  struct Candidate {
    std::int32_t rank;
    std::uint32_t left;  // index of the left symbol
    std::int32_t merged;
    /// Order of the heap: the best candidate is the largest.
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
  std::string key;  // of a look-up
};

}  // namespace zi
