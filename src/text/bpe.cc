#include "text/bpe.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/utf8.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

}  // namespace

std::size_t Bpe::Mix::operator()(std::uint64_t key) const { return mix64(key); }

void Bpe::push_candidate(std::uint32_t left, Scratch& scratch) const {
  const Scratch::Symbol& symbol = scratch.symbols[left];
  if (symbol.next == kNone) return;
  if (const Merge* merge = find(symbol.id, scratch.symbols[symbol.next].id)) {
    scratch.heap.push_back({merge->rank, left, merge->merged});
    std::push_heap(scratch.heap.begin(), scratch.heap.end());
  }
}

bool Bpe::add_bytes(std::string_view character, Scratch& scratch) const {
  const auto id_of = [&](char byte) { return byte_ids[static_cast<unsigned char>(byte)]; };
  if (!std::ranges::all_of(character, [&](char byte) { return id_of(byte) >= 0; })) return false;
  for (const char byte : character) scratch.symbols.push_back({id_of(byte), kNone, kNone});
  return true;
}

void Bpe::add_units(std::string_view piece, Scratch& scratch) const {
  if (units == Units::kBytes) {
    for (const char byte : piece) {
      const std::int32_t id = byte_ids[static_cast<unsigned char>(byte)];
      if (id >= 0) scratch.symbols.push_back({id, kNone, kNone});
    }
    return;
  }
  bool pending = false;  // an unknown token that is still to be put down
  const auto put_pending = [&] {
    if (std::exchange(pending, false)) scratch.symbols.push_back({*unknown, kNone, kNone});
  };
  while (!piece.empty()) {
    scratch.key = piece.substr(0, utf8_front(piece).bytes);
    piece.remove_prefix(scratch.key.size());
    if (const auto known = characters.find(scratch.key); known != characters.end()) {
      put_pending();
      scratch.symbols.push_back({known->second, kNone, kNone});
    } else if (!add_bytes(scratch.key, scratch) && unknown) {  // bytes overtake one that is pending
      if (!fuse_unknown) put_pending();
      pending = true;
    }
  }
  put_pending();
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  if (piece.empty()) return;
  if (piece.size() >= kNone) throw PromptError("a text of 4 GiB or more cannot be tokenized");
  if (!whole.empty()) {
    if (const auto it = whole.find(std::string(piece)); it != whole.end()) {
      ids.push_back(it->second);
      return;
    }
  }
  auto& symbols = scratch.symbols;
  symbols.clear();
  scratch.heap.clear();
  add_units(piece, scratch);
  if (symbols.empty()) return;
  const auto count = static_cast<std::uint32_t>(symbols.size());
  for (std::uint32_t i = 0; i < count; ++i) {
    symbols[i].previous = i == 0 ? kNone : i - 1;
    symbols[i].next = i + 1 == count ? kNone : i + 1;
  }
  for (std::uint32_t i = 0; i + 1 < symbols.size(); ++i) push_candidate(i, scratch);

  while (!scratch.heap.empty()) {
    std::pop_heap(scratch.heap.begin(), scratch.heap.end());
    const Scratch::Candidate candidate = scratch.heap.back();
    scratch.heap.pop_back();
    Scratch::Symbol& left = symbols[candidate.left];
    if (left.id < 0 || left.next == kNone) continue;
    // Stale where one of the two has changed since: then its pair is another, or none.
    const Merge* merge = find(left.id, symbols[left.next].id);
    if (merge == nullptr || merge->merged != candidate.merged) continue;

    Scratch::Symbol& right = symbols[left.next];
    left.id = candidate.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next != kNone) symbols[left.next].previous = candidate.left;
    push_candidate(candidate.left, scratch);
    if (left.previous != kNone) push_candidate(left.previous, scratch);
  }
  for (std::uint32_t i = 0; i != kNone; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace zi
