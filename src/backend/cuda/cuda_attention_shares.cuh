#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/cuda_attention_kernels.cuh"

/// How blocks divide the keys of rows that wait for memory.
///
/// All keys of all rows and heads stand in one line, counted in units; each block takes an equal
/// share of it (stream-K, Osama et al. 2023). So a long sequence among short ones is divided among
/// as many blocks as it is worth. A share is one or more segments, each of one row and head. Of
/// those at most the first and the last are a piece of their row's keys only: what they leave goes
/// to two slots of the block's own, and the last block to finish of those that have a piece merges
/// them. Blocks find their shares from contexts in device memory, so that a captured graph stays
/// right, and in balance, whatever the contexts become.
namespace zi {

/// Units of 64 keys: four pages, one for each warp.
inline constexpr int kUnitKeys = 4 * kKvPageTokens;
/// Units of a share at least: fewer are not worth a block and what it leaves to merge.
inline constexpr int kLeastShare = 2;
/// Units of a share from which on a device's blocks make one more round. Shorter ones would spend
/// their time on starting; without rounds, blocks that were late are waited for.
inline constexpr int kRoundUnits = 30;
inline constexpr int kMostRounds = 4;

/// What a launch divides, and into what.
struct Division {
  enum class Into {
    kWarpHeads,  // grid (rows, heads / warps of a block): a row's head has a warp to itself
    kHeads,      // grid (rows, heads): .. a block to itself
    kShares,     // grid (blocks): equal shares
  };
  Into into = Into::kHeads;
  /// Whether any row of any sequence takes part, and the grid counts rows; else sequences with one
  /// row take part, and it counts sequences.
  bool by_row = false;
  int resident = 1;  // blocks that the device holds at once
};

/// Keys [first, last) of those that a row sees, for one head (or one tile of heads).
struct Segment {
  int row;
  int sequence;
  int head;
  int keys;  // that the row sees
  int first;
  int last;    // not beyond first: none, where rows of one sequence are charged alike
  int pieces;  // that the row's keys for this head are in; 0: no segment
  int slot;    // for a piece
  int origin;  // the block that has the first piece
};

/// Where piece `i` of a segment's row and head is.
__device__ inline std::int64_t slot_of(const Segment& s, int i) {
  return i == 0 ? 2 * s.origin + 1 : 2 * (s.origin + i);
}

/// The segments of a block, in shared memory. All threads of the block call each function together.
class WorkShare {
 public:
  /// Finds the first segment, of `heads` heads a row; false if there is none. Reads nothing but the
  /// batch's tables, which no kernel writes.
  __device__ bool start(const AttentionArgs& a, const Division& division, int heads) {
    if (division.into == Division::Into::kShares) {
      return find_share(a, division, heads) && next(a, division, heads);
    }
    const auto [row, sequence, keys] = find_row(a, division.by_row, static_cast<int>(blockIdx.x));
    if (threadIdx.x == 0) {
      segment_ = {row, sequence, static_cast<int>(blockIdx.y), keys, 0, keys, 1, 0, 0};
    }
    __syncthreads();
    return keys > 0;
  }

  /// Goes on to the next segment; false after the last.
  __device__ bool next(const AttentionArgs& a, const Division& division, int heads) {
    if (division.into != Division::Into::kShares) return false;
    __syncthreads();  // all are done with the segment before
    if (threadIdx.x == 0) {
      segment_.pieces = 0;
      if (left_ > 0) take_segment(a, division, heads);
    }
    __syncthreads();
    return segment_.pieces > 0;
  }

  __device__ const Segment& segment() const { return segment_; }

  /// Called when the block has written its piece: whether all pieces of its row and head are
  /// written now, and visible to this block, which is the only one to hear so.
  __device__ bool completes(std::uint32_t* arrivals) {
    __syncthreads();
    if (threadIdx.x == 0) {
      const auto others = static_cast<std::uint32_t>(segment_.pieces - 1);
      completes_ = ptx::count_to(arrivals + segment_.origin, others) == others;
    }
    __syncthreads();
    return completes_;
  }

 private:
  static constexpr int kMostWarps = 4;
  struct Row {
    int row;
    int sequence;
    int keys;  // 0: no such row, or none of those that take part
  };
  struct Scan {
    std::uint32_t before;  // sum of what threads before this one gave
    std::uint32_t total;   // of all threads
  };

  __device__ static Row find_row(const AttentionArgs& a, bool by_row, int index) {
    if (by_row) {
      const int sequence = sequence_of_row(a.row_begin, a.sequences, index);
      if (sequence >= a.sequences) return {index, sequence, 0};
      return {index, sequence, a.context[sequence] - a.row_begin[sequence + 1] + index + 1};
    }
    // Three loads at once.
    const int row = a.row_begin[index];
    const int end = a.row_begin[index + 1];
    const int keys = a.context[index];
    return {row, index, end - row == 1 ? keys : 0};
  }

  __device__ static int units_of_row(int context) { return (context + kUnitKeys - 1) / kUnitKeys; }

  /// Of all rows of a sequence that take part, for one head. Each is charged for the whole context.
  __device__ static std::uint32_t units_of(const AttentionArgs& a, bool by_row, int sequence) {
    const int rows = a.row_begin[sequence + 1] - a.row_begin[sequence];
    const int units = units_of_row(a.context[sequence]);
    return by_row || rows == 1 ? static_cast<std::uint32_t>(rows * units) : 0;
  }

  __device__ Scan scan(std::uint32_t mine) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    std::uint32_t sum = mine;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const std::uint32_t other = __shfl_up_sync(0xffffffffu, sum, lanes);
      if (lane >= lanes) sum += other;
    }
    __syncthreads();  // the scan before is read
    if (lane == 31) warp_sums_[warp] = sum;
    __syncthreads();
    Scan result{sum - mine, 0};
#pragma unroll
    for (int w = 0; w < kMostWarps; ++w) {
      if (w * 32 >= static_cast<int>(blockDim.x)) break;
      if (w < warp) result.before += warp_sums_[w];
      result.total += warp_sums_[w];
    }
    return result;
  }

  /// Where this block's share begins, and how much it is.
  __device__ bool find_share(const AttentionArgs& a, const Division& division, int heads) {
    const int threads = static_cast<int>(blockDim.x);
    int sequence = static_cast<int>(threadIdx.x);
    std::uint32_t mine = 0;
    for (int s = sequence; s < a.sequences; s += threads) mine += units_of(a, division.by_row, s);
    Scan units = scan(mine);
    const std::uint64_t all = std::uint64_t{units.total} * static_cast<unsigned>(heads);
    const std::uint64_t resident = static_cast<unsigned>(division.resident);
    const std::uint64_t wanted = max(all / (resident * kRoundUnits), std::uint64_t{1}) * resident;
    const std::uint64_t blocks = min(wanted, std::uint64_t{gridDim.x});
    const std::uint64_t share =
        max((all + blocks - 1) / blocks, static_cast<std::uint64_t>(kLeastShare));
    const std::uint64_t first = blockIdx.x * share;
    if (first >= all) return false;
    if (a.sequences > threads) {  // what a thread knows is of several: one of each at a time
      std::uint32_t earlier = 0;
      for (;; sequence += threads) {
        mine = sequence < a.sequences ? units_of(a, division.by_row, sequence) : 0;
        units = scan(mine);
        units.before += earlier;
        earlier += units.total;
        if (std::uint64_t{earlier} * static_cast<unsigned>(heads) > first) break;
      }
    }
    const std::uint64_t begin = std::uint64_t{units.before} * static_cast<unsigned>(heads);
    if (begin <= first && first - begin < std::uint64_t{mine} * static_cast<unsigned>(heads)) {
      share_ = static_cast<int>(share);
      left_ = static_cast<int>(min(share, all - first));
      enter(a, sequence);
      const auto of_row = static_cast<std::uint64_t>(units_) * static_cast<unsigned>(heads);
      const auto rest = static_cast<std::uint32_t>((first - begin) % of_row);
      row_ += static_cast<int>((first - begin) / of_row);
      head_ = static_cast<int>(rest / static_cast<unsigned>(units_));
      unit_ = static_cast<int>(rest % static_cast<unsigned>(units_));
      head_begin_ = first - static_cast<unsigned>(unit_);
    }
    return true;
  }

  __device__ void enter(const AttentionArgs& a, int sequence) {
    sequence_ = sequence;
    row_ = a.row_begin[sequence];
    row_end_ = a.row_begin[sequence + 1];
    context_ = a.context[sequence];
    units_ = units_of_row(context_);
  }

  /// By one thread, which then stands behind the segment.
  __device__ void take_segment(const AttentionArgs& a, const Division& division, int heads) {
    const int count = min(left_, units_ - unit_);
    const int keys = context_ - (row_end_ - 1 - row_);
    Segment s{row_, sequence_, head_, keys, unit_ * kUnitKeys, 0, 1, 0, 0};
    s.last = min(keys, s.first + count * kUnitKeys);
    if (count < units_) {
      const std::uint64_t share = static_cast<unsigned>(share_);
      s.origin = static_cast<int>(head_begin_ / share);
      s.pieces = static_cast<int>((head_begin_ + static_cast<unsigned>(units_) - 1) / share) -
                 s.origin + 1;
      s.slot = 2 * static_cast<int>(blockIdx.x) + (unit_ == 0 ? 1 : 0);
    }
    segment_ = s;

    left_ -= count;
    unit_ += count;
    if (unit_ < units_) return;
    unit_ = 0;
    head_begin_ += static_cast<unsigned>(units_);
    if (++head_ < heads) return;
    head_ = 0;
    if (++row_ < row_end_ || left_ == 0) return;
    int sequence = sequence_ + 1;
    while (units_of(a, division.by_row, sequence) == 0) ++sequence;  // there are units left
    enter(a, sequence);
  }

  Segment segment_;
  bool completes_;
  std::uint32_t warp_sums_[kMostWarps];
  // The segment to come: from unit `unit_` of `units_` on, of a row and head.
  int sequence_, row_, row_end_, head_, unit_, units_, context_;
  std::uint64_t head_begin_;  // of the row and head, in the line of all units
  int share_;                 // units of a block
  int left_;                  // of this one's
};

/// What pieces leave.
struct Partials {
  /// Of a slot and each of its heads: the largest score (times log2 e), -inf without keys, and the
  /// sum of weights relative to it.
  float2* totals = nullptr;  // (2 blocks, slot_heads)
  /// The sums of weights * v.
  float* sums = nullptr;  // (2 blocks, slot_heads, head_dim)
  /// How many pieces of the row and head that begins in a block and ends in another are written.
  std::uint32_t* arrivals = nullptr;  // (blocks): 0 before each launch, and after it
  int slot_heads = 1;
};

/// A softmax that runs: the largest score so far, and relative to it the sums of weights, and of
/// weights * v.
template <int kElements>
struct Running {
  float maximum = -INFINITY;
  float total = 0.0f;
  float sum[kElements] = {};
};

/// Merges every `stride`-th piece from `first` on of a head of a segment, by one warp: each lane
/// gets the elements lane + 32 i. Loads of kAtOnce pieces wait for memory together.
template <int kPerLane, int kAtOnce>
__device__ __forceinline__ Running<kPerLane> merge_pieces(const Partials& partials,
                                                          const Segment& segment, int head,
                                                          int head_dim, int first, int stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int pieces = segment.pieces;
  Running<kPerLane> merged;
  for (int i = first; i < pieces; i += kAtOnce * stride) {
    float2 totals[kAtOnce];
    float sums[kAtOnce][kPerLane];
    float best = merged.maximum;
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const bool there = i + u * stride < pieces;
      const std::int64_t at =
          slot_of(segment, there ? i + u * stride : 0) * partials.slot_heads + head;
      totals[u] = there ? __ldcg(partials.totals + at) : make_float2(-INFINITY, 0.0f);
#pragma unroll
      for (int n = 0; n < kPerLane; ++n) {
        const int dim = lane + 32 * n;
        sums[u][n] = there && dim < head_dim ? __ldcg(partials.sums + at * head_dim + dim) : 0.0f;
      }
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) best = fmaxf(best, totals[u].x);
    const float reference = reference_of(best);
    const float fade = ptx::exp2(merged.maximum - reference);
    merged.maximum = best;
    merged.total *= fade;
#pragma unroll
    for (int n = 0; n < kPerLane; ++n) merged.sum[n] *= fade;
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const float weight = ptx::exp2(totals[u].x - reference);
      merged.total = fmaf(weight, totals[u].y, merged.total);
#pragma unroll
      for (int n = 0; n < kPerLane; ++n) {
        merged.sum[n] = fmaf(weight, sums[u][n], merged.sum[n]);
      }
    }
  }
  return merged;
}

/// Memory for what pieces leave, and the number of blocks.
struct Shares {
  Partials partials;
  unsigned blocks = 0;
};

/// Into how many shares a launch of `shape` is divided, for `heads` heads a row (or tiles of them)
/// of `slot_heads` each; no blocks where heads are too short to be divided. The same for all
/// batches of as many rows whose longest context has the same power of two.
Shares choose_shares(const AttentionArgs& args, const DecodeShape& shape, int heads, int slot_heads,
                     std::int64_t resident, const AttentionMemory& memory);

}  // namespace zi
