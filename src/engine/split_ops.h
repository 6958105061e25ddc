#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "engine/forwarding_ops.h"
#include "zero_infer/backend.h"
#include "zero_infer/device.h"
#include "zero_infer/dtype.h"
#include "zero_infer/model.h"
#include "zero_infer/ops.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// Ops that multiply split matrices in two places, and hand on all else: the device its rows, the
/// host's cores theirs at the same time, where they rest. Inputs go out to pinned memory and
/// results come in from there, ordered by events: the thread that enqueues does not wait.
class SplitOps final : public ForwardingOps {
 public:
  /// Bytes for inputs and results on their way.
  struct Memory {
    std::size_t device = 0;
    std::size_t pinned = 0;
  };
  /// For products of up to `rows` rows with the matrices of these blocks, or rounds of so many as
  /// some MiB hold.
  static Memory memory_for(const Model& model, std::span<const PartitionLayout> blocks,
                           DType compute_dtype, std::int64_t rows);

  /// Takes the memory.
  SplitOps(std::shared_ptr<Ops> inner, Device& device, HostProducts& host, const Memory& memory);

  void matmul(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w, float* y,
              Stream& stream) override;
  void matmul_activate(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                       const Activate& activate, float* product, void* y, DType y_dtype,
                       Stream& stream) override;
  void matmul_qkv(const void* a, DType a_dtype, const Matrices& w, const QkvSplit& split,
                  const RaggedBatch& batch, const KvLayer& kv, float* product, float* q,
                  Stream& stream) override;

  /// Throws what failed in the host's products. A stream that waited for them does not know.
  void check() { host_stream_->synchronize(); }

 private:
  struct Parts;
  void multiply(const std::byte* a, DType a_dtype, std::int64_t rows, const Parts& parts, float* y,
                std::int64_t ld, Stream& stream);

  Device* device_;
  HostProducts* host_;
  // Memory before the stream whose tasks use it.
  Buffer sums_;    // the device's part of a product
  Buffer pinned_;  // inputs, then the host's part
  std::unique_ptr<Stream> host_stream_;
  std::unique_ptr<Event> sent_;
  std::unique_ptr<Event> multiplied_;
};

}  // namespace zi
