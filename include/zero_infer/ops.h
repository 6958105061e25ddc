#pragma once

#include <cstdint>
#include <span>

#include "zero_infer/activation.h"
#include "zero_infer/device.h"
#include "zero_infer/dtype.h"
#include "zero_infer/partition_layout.h"
#include "zero_infer/uniform_values.h"
#include "zero_infer/weight_format.h"

namespace zi {

/// Tokens of one page of the KV cache.
inline constexpr int kKvPageTokens = 16;

/// Elements of an attention head at most.
inline constexpr int kMostHeadDim = 256;

/// One layer's part of the paged KV cache, in device memory. Page p holds
/// K (heads, kKvPageTokens, head_dim), then V in the same shape, at p * page_bytes. `heads` are
/// those of keys and values.
struct KvLayer {
  std::byte* data = nullptr;
  DType dtype = DType::kBFloat16;
  int heads = 0;
  int head_dim = 0;
  std::size_t page_bytes() const {
    return 2 * static_cast<std::size_t>(heads) * kKvPageTokens *
           static_cast<std::size_t>(head_dim) * size_of(dtype);
  }
};

/// The rows of a pass: a ragged batch without padding. Sequence s owns the token rows
/// [row_begin[s], row_begin[s + 1]) at positions context[s] - rows .. context[s] - 1; the keys of
/// all earlier positions are already in its pages, or rows of another sequence of the batch, which
/// has the same page, put them there: split_qkv stores those of all rows before attention reads
/// any. Pointers are to device memory, except where said.
struct RaggedBatch {
  int tokens = 0;
  int sequences = 0;
  const std::int32_t* row_begin = nullptr;     // (sequences + 1)
  const std::int32_t* context = nullptr;       // (sequences): keys after this pass
  const std::int32_t* block_tables = nullptr;  // (sequences, max_pages): physical page of each page
  int max_pages = 0;
  std::span<const std::int32_t> host_row_begin;  // the same values on the host, to choose shapes
  std::span<const std::int32_t> host_context;
};

/// LayerNorm (Ba et al. 2016) where `centred`, else RMSNorm (Zhang and Sennrich 2019): the row,
/// less its mean if centred, over the root of its mean square plus epsilon, times gamma, plus beta.
struct Norm {
  const float* gamma = nullptr;  // (cols)
  const float* beta = nullptr;   // (cols), or null: none
  float epsilon = 1e-5f;
  bool centred = true;
};

/// What is done between the products of an MLP: act(x + bias), or with a gate
/// act(x + bias) * (up + up_bias), where `up` is the column of the product at which the second
/// matrix's start.
struct Activate {
  Activation activation = Activation::kGeluTanh;
  const float* bias = nullptr;     // (cols), or null: none
  std::int64_t up = -1;            // -1: no gate
  const float* up_bias = nullptr;  // (cols), or null: none
};

/// Where the heads of a projection stand in a product: head h's columns start at first + h * step,
/// its biases at h * step.
struct HeadColumns {
  std::int64_t first = 0;
  std::int64_t step = 0;
  const float* bias = nullptr;  // null: none
};

/// How the product of a token's row becomes its queries, keys and values.
struct QkvSplit {
  HeadColumns q = {};
  HeadColumns k = {};
  HeadColumns v = {};
  int heads = 0;                  // of queries; KvLayer has those of keys and values
  const float* q_norm = nullptr;  // (head_dim): an RMSNorm of each query, or null: none
  const float* k_norm = nullptr;  // (head_dim): the same of each key
  float norm_epsilon = 1e-6f;
  const float* rotations = nullptr;  // (tokens, rotary / 2, 2), see Ops::rotations; null: none
  int rotary = 0;                    // elements of a head that are rotated, from the first on
};

/// Columns of a product that were made by themselves.
struct ColumnRun {
  const float* x = nullptr;  // (rows, ld): the first of them
  std::int64_t ld = 0;
  std::int64_t cols = 0;
  std::int64_t first = 0;  // where they belong
};

struct LogitBias {
  std::int32_t id = 0;
  float value = 0;  // -infinity: the id is never drawn
};

/// What to draw from one row of logits. Ids beyond the vocabulary, in a history or a bias, are
/// passed over.
struct SampleRow {
  float temperature = 0;         // 0: the largest logit (the lowest id among equals)
  int top_k = 0;                 // 0: all
  float top_p = 1;               // 1: all
  float min_p = 0;               // 0: all; the part of the best id's probability that an id needs
  float repetition_penalty = 1;  // 1: none; applied to each distinct id in `history`
  float presence_penalty = 0;    // 0: none; subtracted from the logit of each distinct new id
  float frequency_penalty = 0;   // 0: none; the same, times how often the id came
  std::uint64_t seed = 0;
  std::uint64_t sequence = 0;             // index of the prompt, and
  std::uint64_t position = 0;             // of the new token: they and the seed fix the draw
  std::span<const std::int32_t> history;  // host memory: prompt and new tokens so far
  std::size_t new_tokens = 0;             // of the history, at its end
  std::span<const LogitBias> bias;        // host memory: added to logits before all penalties
  std::int32_t target = -1;               // >= 0: draw nothing, report this id's log-probability
  int top = 0;                            // how many best ids to report: SampleResults.top at most
};

/// The id in SampleResults where there is none to draw.
inline constexpr std::int32_t kNoId = -1;

/// Results of `sample` in pinned host memory, valid once the stream has passed.
struct SampleResults {
  std::int32_t* ids = nullptr;      // (rows)
  float* logprobs = nullptr;        // (rows): log-softmax of the raw logits at the id
  int top = 0;                      // room for the best ids of a row
  std::int32_t* top_ids = nullptr;  // (rows, top): best first, as many as the row asks for
  float* top_logprobs = nullptr;    // (rows, top)
};

/// The operations of a pass, enqueued on a stream. Matrices are row-major, `ld` is a leading
/// dimension in elements, all pointers are to device memory. The residual `x`, products and softmax
/// are float32, but where an op says otherwise; inputs of products and the KV cache have the compute
/// type. A row's result never
/// depends on the other rows of the batch: on the CPU backend not in one bit.
///
/// A GPU may read some operands while the stream's last kernels still run: weights, vectors (gamma,
/// beta, bias, slopes, frequencies) and the tables of a batch. They must have been written by a
/// copy, or by work from before the stream last waited for an event or was synchronized; not by an
/// op enqueued since then.
///
/// Ops with a body here run other ops one after the other; a backend may do them in one kernel, and
/// a wrapper of Ops must forward them.
class Ops {
 public:
  virtual ~Ops() = default;

  /// Whether all operations except `sample` may be recorded in a Graph.
  virtual bool recordable() const { return false; }

  /// y (rows, cols) of type `y_dtype` = the norm of x (rows, cols) float32, row by row; y may be x
  /// when that is float32.
  virtual void normalize(const float* x, const Norm& norm, std::int64_t rows, std::int64_t cols,
                         void* y, DType y_dtype, Stream& stream) = 0;

  /// y (rows, ld) = a (rows, w.cols()) . w^T, accumulated in float32; ld = w.padded_rows(). `a` has
  /// type `a_dtype`; weights of another type take part with their stored values, packed ones with
  /// those values, or those values rounded to `a_dtype`.
  virtual void matmul(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w, float* y,
                      Stream& stream) = 0;

  /// y (rows, cols) of `y_dtype` = what `activate` says of x (rows, ld) float32.
  virtual void activate(const float* x, std::int64_t ld, const Activate& activate,
                        std::int64_t rows, std::int64_t cols, void* y, DType y_dtype,
                        Stream& stream) = 0;

  /// activate of matmul: y (rows, w[0].rows) of `y_dtype`. w is one matrix, or the gate and `up`
  /// with activate.up = w.first(1). `product` (rows, w.padded_rows()) is scratch memory, which may
  /// or may not be written. `a` and y do not overlap. Biases, and the sums of a gate and of what it
  /// opens, may be rounded to a 16-bit `y_dtype` before they are used.
  virtual void matmul_activate(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                               const Activate& activate, float* product, void* y, DType y_dtype,
                               Stream& stream) {
    matmul(a, a_dtype, rows, w, product, stream);
    this->activate(product, w.padded_rows(), activate, rows, w[0].rows, y, y_dtype, stream);
  }

  /// residual (rows, cols) += x + bias; y (rows, cols) of `y_dtype` = the norm of that. x (rows,
  /// ld) float32; bias may be null.
  virtual void bias_residual_norm(const float* x, std::int64_t ld, const float* bias,
                                  float* residual, const Norm& norm, std::int64_t rows,
                                  std::int64_t cols, void* y, DType y_dtype, Stream& stream) = 0;

  /// residual (rows, cols) += x + bias; x (rows, ld) float32; bias may be null.
  virtual void bias_residual(const float* x, std::int64_t ld, const float* bias, std::int64_t rows,
                             std::int64_t cols, float* residual, Stream& stream) = 0;

  /// x (batch.tokens, cols) += table[first + position of the row]; table (any, cols) float32.
  virtual void add_positions(const float* table, std::int64_t first, const RaggedBatch& batch,
                             std::int64_t cols, float* x, Stream& stream) = 0;

  /// The rotations of the rows' positions (RoPE, Su et al. 2021): out (batch.tokens, pairs, 2) =
  /// scale * (cos, sin) of position * frequencies[pair]; frequencies (pairs) float32.
  virtual void rotations(const float* frequencies, int pairs, float scale, const RaggedBatch& batch,
                         float* out, Stream& stream) = 0;

  /// Adds the biases to the product qkv (tokens, ld), norms and rotates queries and keys where the
  /// split says so, writes q (tokens, heads * head_dim) float32, and k and v into the pages of each
  /// row's position. Element i < rotary / 2 of a head is rotated with element i + rotary / 2.
  virtual void split_qkv(const float* qkv, std::int64_t ld, const QkvSplit& split,
                         const RaggedBatch& batch, const KvLayer& kv, float* q, Stream& stream) = 0;

  /// split_qkv of matmul: q, and the pages of each row's position, from a (batch.tokens, w.cols()).
  /// `product` (batch.tokens, w.padded_rows()) is scratch memory, which may or may not be written.
  /// `a` and q do not overlap. Queries may be rounded to kv.dtype.
  virtual void matmul_qkv(const void* a, DType a_dtype, const Matrices& w, const QkvSplit& split,
                          const RaggedBatch& batch, const KvLayer& kv, float* product, float* q,
                          Stream& stream) {
    matmul(a, a_dtype, batch.tokens, w, product, stream);
    split_qkv(product, w.padded_rows(), split, batch, kv, q, stream);
  }

  /// Causal attention of each row over its sequence's keys: scores = q.k / sqrt(head_dim) +
  /// slopes[head] * key position (ALiBi, Press et al. 2021; slopes may be null), softmax in
  /// float32. kv.heads divides `heads`: heads / kv.heads queries in a row share a head of keys and
  /// values (Ainslie et al. 2023). q (tokens, heads * head_dim), out the same of `out_dtype`.
  /// head_dim up to kMostHeadDim, any value.
  virtual void attention(const float* q, int heads, const RaggedBatch& batch, const KvLayer& kv,
                         const float* slopes, void* out, DType out_dtype, Stream& stream) = 0;

  /// out (count, cols) float32 = x[rows[i]], x (any, cols) of `format`; `rows` (count) in device
  /// memory.
  virtual void gather_rows(const void* x, const WeightFormat& format, const std::int32_t* rows,
                           std::int64_t count, std::int64_t cols, float* out, Stream& stream) = 0;

  /// y (count) of type `to` = x of type `from`.
  virtual void convert(const void* x, DType from, void* y, DType to, std::int64_t count,
                       Stream& stream) = 0;

  /// y (count) of type `to` = elements [first, first + count) of a tensor of seeded random values.
  virtual void fill_uniform(const UniformValues& values, std::int64_t first, std::int64_t count,
                            void* y, DType to, Stream& stream) = 0;

  /// y (rows) of `format` = rows [first, first + rows) of such a tensor (any, cols), packed as
  /// pack_rows does where the format is a packed one.
  virtual void fill_uniform_rows(const UniformValues& values, std::int64_t first, std::int64_t rows,
                                 std::int64_t cols, const WeightFormat& format, std::byte* y,
                                 Stream& stream) = 0;

  /// Puts the columns of products that n ranks have multiplied side by side: parts (blocks, rows,
  /// sum of slices) to y (rows, blocks * that sum), both of `type`. Each of up to Matrices::kMost
  /// slices is a matrix's columns in a block; in y those of all blocks stand together.
  virtual void interleave(const void* parts, DType type, int blocks, std::int64_t rows,
                          std::span<const std::int64_t> slices, void* y, Stream& stream) = 0;

  /// Puts up to kMostRuns runs of columns in their places: y (rows, ld) float32. `x` of a run may
  /// be in pinned host memory. What y holds in other columns stays.
  static constexpr std::size_t kMostRuns = 2 * Matrices::kMost;
  virtual void put_columns(std::span<const ColumnRun> runs, std::int64_t rows, float* y,
                           std::int64_t ld, Stream& stream) = 0;

  /// Draws a token from each of `rows.size()` rows of logits (rows, ld), among the ids below
  /// `vocabulary` (log-probabilities are over those ids too); sample_row in sampler.h says how.
  /// `rows`, their histories and biases are copied before returning. A row that holds NaN or
  /// +infinity, or nothing but -infinity, gets the id kNoId and a log-probability of NaN; one whose
  /// bias leaves no id gets kNoId and -infinity. The other rows are drawn all the same. Throws
  /// Error, before anything is enqueued, for rows that check_sample_row refuses and for more best
  /// ids than there is room for.
  virtual void sample(const float* logits, std::int64_t ld, std::int64_t vocabulary,
                      std::span<const SampleRow> rows, const SampleResults& results,
                      Stream& stream) = 0;
};

}  // namespace zi
