#include "engine/split_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <vector>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Rows of a round at most: more read the weights again, where products have long been bound by
/// arithmetic.
constexpr std::int64_t kRoundRows = 256;

bool is_split(const Matrices& w) {
  for (std::size_t i = 0; i < w.size(); ++i) {
    if (w[i].host_rows > 0) return true;
  }
  return false;
}

/// The results of a round start behind its inputs.
std::size_t round_input_bytes(std::int64_t rows, std::int64_t cols, DType dtype) {
  return align_up(static_cast<std::size_t>(rows * cols) * size_of(dtype), kMatrixAlignment);
}

std::size_t round_sum_bytes(std::int64_t rows, std::int64_t columns) {
  return static_cast<std::size_t>(rows * columns) * sizeof(float);
}

}  // namespace

/// A product's matrices in two, and where the columns of their results belong.
struct SplitOps::Parts {
  explicit Parts(const Matrices& w) {
    std::vector<RowBlockMatrix> of_device, of_host;
    for (std::size_t i = 0; i < w.size(); ++i) {
      const RowBlockMatrix near = w[i].device_part();
      const RowBlockMatrix far = w[i].host_part();
      if (near.rows_per_block > 0) {
        device_columns[of_device.size()] = w.first(i);
        of_device.push_back(near);
      }
      if (far.rows_per_block > 0) {
        host_columns[of_host.size()] = w.first(i) + near.rows_per_block;
        of_host.push_back(far);
      }
    }
    if (!of_device.empty()) device.emplace(of_device);
    host.emplace(of_host);
  }

  /// What `part` makes in `sums` (rows, part.padded_rows()), one after the other behind `runs`.
  static ColumnRun* runs_of(const Matrices& part, const float* sums, const std::int64_t* columns,
                            ColumnRun* runs) {
    for (std::size_t i = 0; i < part.size(); ++i) {
      *runs++ = {sums + part.first(i), part.padded_rows(), part[i].rows_per_block, columns[i]};
    }
    return runs;
  }

  std::optional<Matrices> device;  // none: the host has all rows
  std::optional<Matrices> host;
  std::array<std::int64_t, Matrices::kMost> device_columns{};
  std::array<std::int64_t, Matrices::kMost> host_columns{};
};

SplitOps::Memory SplitOps::memory_for(const Model& model, std::span<const PartitionLayout> blocks,
                                      DType compute_dtype, std::int64_t rows) {
  const std::int64_t round = std::min(rows, kRoundRows);
  Memory memory;
  for (const PartitionLayout& block : blocks) {
    for (const BlockProduct& product : model.products()) {
      std::int64_t columns = 0;
      std::int64_t cols = 0;
      for (int i = product.first; i < product.first + product.count; ++i) {
        const auto& matrix = block.matrices().at(static_cast<std::size_t>(i));
        columns += matrix.rows_per_rank;
        cols = matrix.tensor.shape[1];
      }
      memory.device = std::max(memory.device, round_sum_bytes(round, columns));
      memory.pinned = std::max(memory.pinned, round_input_bytes(round, cols, compute_dtype) +
                                                  round_sum_bytes(round, columns));
    }
  }
  return memory;
}

SplitOps::SplitOps(std::shared_ptr<Ops> inner, Device& device, HostProducts& host,
                   const Memory& memory)
    : ForwardingOps(std::move(inner)),
      device_(&device),
      host_(&host),
      sums_(device.allocate(memory.device)),
      pinned_(device.allocate_pinned(memory.pinned)),
      host_stream_(device.make_stream("host products")),
      sent_(device.make_event()),
      multiplied_(device.make_event()) {}

void SplitOps::multiply(const std::byte* a, DType a_dtype, std::int64_t rows, const Parts& parts,
                        float* y, std::int64_t ld, Stream& stream) {
  std::byte* const inputs = pinned_.data();
  const std::size_t taken = round_input_bytes(rows, parts.host->cols(), a_dtype);
  auto* const far = reinterpret_cast<float*>(inputs + taken);
  auto* const near = sums_.as<float>();
  // The stream has passed the last product: nobody uses the memory any more.
  const auto bytes = static_cast<std::size_t>(rows * parts.host->cols()) * size_of(a_dtype);
  device_->copy(inputs, a, bytes, stream);
  stream.record(*sent_);
  host_stream_->wait(*sent_);
  host_stream_->enqueue([host = host_, w = *parts.host, inputs, a_dtype, rows, far] {
    host->run(inputs, a_dtype, rows, w, far);
  });
  host_stream_->record(*multiplied_);

  std::array<ColumnRun, kMostRuns> runs;
  ColumnRun* end = runs.data();
  if (parts.device) {
    ForwardingOps::matmul(a, a_dtype, rows, *parts.device, near, stream);
    end = Parts::runs_of(*parts.device, near, parts.device_columns.data(), end);
  }
  stream.wait(*multiplied_);
  end = Parts::runs_of(*parts.host, far, parts.host_columns.data(), end);
  put_columns({runs.data(), end}, rows, y, ld, stream);
}

void SplitOps::matmul(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w, float* y,
                      Stream& stream) {
  if (!is_split(w)) {
    ForwardingOps::matmul(a, a_dtype, rows, w, y, stream);
    return;
  }
  if (rows == 0) return;
  const std::int64_t ld = w.padded_rows();
  std::int64_t round = std::min(rows, kRoundRows);
  const auto fits = [&](std::int64_t count) {
    return round_sum_bytes(count, ld) <= sums_.bytes() &&
           round_input_bytes(count, w.cols(), a_dtype) + round_sum_bytes(count, ld) <=
               pinned_.bytes();
  };
  while (round > 1 && !fits(round)) round = (round + 1) / 2;
  if (!fits(round)) throw Error(fmt::format("a split product of {} columns has no memory", ld));
  const Parts parts(w);
  const auto* inputs = static_cast<const std::byte*>(a);
  const std::size_t row_bytes = static_cast<std::size_t>(w.cols()) * size_of(a_dtype);
  for (std::int64_t begin = 0; begin < rows; begin += round) {
    multiply(inputs + static_cast<std::size_t>(begin) * row_bytes, a_dtype,
             std::min(round, rows - begin), parts, y + begin * ld, ld, stream);
  }
}

void SplitOps::matmul_activate(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                               const Activate& activate, float* product, void* y, DType y_dtype,
                               Stream& stream) {
  if (!is_split(w)) {
    ForwardingOps::matmul_activate(a, a_dtype, rows, w, activate, product, y, y_dtype, stream);
    return;
  }
  matmul(a, a_dtype, rows, w, product, stream);
  this->activate(product, w.padded_rows(), activate, rows, w[0].rows, y, y_dtype, stream);
}

void SplitOps::matmul_qkv(const void* a, DType a_dtype, const Matrices& w, const QkvSplit& split,
                          const RaggedBatch& batch, const KvLayer& kv, float* product, float* q,
                          Stream& stream) {
  if (!is_split(w)) {
    ForwardingOps::matmul_qkv(a, a_dtype, w, split, batch, kv, product, q, stream);
    return;
  }
  matmul(a, a_dtype, batch.tokens, w, product, stream);
  split_qkv(product, w.padded_rows(), split, batch, kv, q, stream);
}

}  // namespace zi
