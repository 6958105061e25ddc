#include "engine/model_weights.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>

#include "zero_infer/bytes.h"
#include "zero_infer/progress.h"

namespace zi {
namespace {

std::size_t vector_stride(const TensorSpec& v) {
  return align_up(static_cast<std::size_t>(v.elements()) * sizeof(float), kMatrixAlignment);
}

/// Of the two pieces that bring shards to device memory.
std::size_t piece_bytes(const MemoryPlan& plan) {
  constexpr std::size_t kMostPieceBytes = 32u << 20;
  std::size_t largest = plan.head_shard;
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    if (plan.tiers[b] != Tier::kDevice) continue;
    largest = std::max(largest, plan.blocks[b].shard_bytes());
  }
  return std::min(kMostPieceBytes, largest);
}
constexpr std::size_t kPieces = 2;

/// Brings shards to device memory, which the host may not be able to write: a piece is read into
/// pinned memory by several threads while the piece before it is being copied. Values that follow a
/// rule are made on the device.
class ShardUploader {
 public:
  ShardUploader(Device& device, Ops& ops, const WeightSource& source, const LoadOptions& options,
                std::size_t piece_bytes)
      : device_(&device),
        ops_(&ops),
        source_(&source),
        piece_bytes_(piece_bytes),
        rank_(options.rank),
        threads_(options.threads),
        stream_(device.make_stream("upload")) {}
  ~ShardUploader() { stream_.reset(); }  // waits, before the pieces go

  void upload(const PartitionLayout& layout, std::byte* dst,
              const std::function<void(std::size_t)>& progress) {
    const bool by_rule = std::ranges::all_of(
        layout.matrices(), [&](const auto& m) { return source_->uniform(m.tensor).has_value(); });
    if (by_rule) {
      make(layout, dst);
      progress(layout.shard_bytes());
    } else {
      send(ShardReader(*source_, layout, rank_), dst, progress);
    }
  }
  void finish() { stream_->synchronize(); }

 private:
  void make(const PartitionLayout& layout, std::byte* dst) {
    device_->zero(dst, layout.shard_bytes(), *stream_);  // the padding
    for (std::size_t i = 0; i < layout.matrices().size(); ++i) {
      const PartitionLayout::Matrix& matrix = layout.matrices()[i];
      const PartitionLayout::RowRange rows = layout.rows_of(i, rank_);
      const std::int64_t cols = matrix.tensor.shape[1];
      ops_->fill_uniform(*source_->uniform(matrix.tensor), rows.first * cols, rows.count * cols,
                         dst + matrix.offset, layout.dtype(), *stream_);
    }
  }

  void send(const ShardReader& reader, std::byte* dst,
            const std::function<void(std::size_t)>& progress) {
    if (pieces_.front().copied == nullptr) {
      for (Piece& piece : pieces_) {
        piece.memory = device_->allocate_pinned(piece_bytes_);
        piece.copied = device_->make_event();
      }
    }
    const std::size_t total = reader.shard_bytes();
    for (std::size_t offset = 0; offset < total; offset += piece_bytes_) {
      Piece& piece = pieces_[next_++ % pieces_.size()];
      piece.copied->synchronize();
      const std::size_t bytes = std::min(piece_bytes_, total - offset);
      read_shard(reader, offset, piece.memory.span().first(bytes), threads_, progress);
      device_->copy(dst + offset, piece.memory.data(), bytes, *stream_);
      stream_->record(*piece.copied);
    }
  }

  struct Piece {
    Buffer memory;
    std::unique_ptr<Event> copied;
  };
  Device* device_;
  Ops* ops_;
  const WeightSource* source_;
  std::size_t piece_bytes_;
  int rank_;
  int threads_;
  std::array<Piece, kPieces> pieces_;
  std::size_t next_ = 0;
  std::unique_ptr<Stream> stream_;
};

}  // namespace

std::size_t ModelWeights::loading_bytes(const MemoryPlan& plan, bool by_rule) {
  return by_rule ? plan.vectors : std::max(plan.vectors, kPieces * piece_bytes(plan));
}

ModelWeights::ModelWeights(Device& device, Ops& ops, const WeightSource& source,
                           const ModelSpec& spec, const MemoryPlan& plan,
                           const LoadOptions& options)
    : source_(&source), embedding_(spec.embedding), weight_dtype_(plan.weight_dtype) {
  const auto start = std::chrono::steady_clock::now();
  load_vectors(device, spec, plan);
  load_shards(device, ops, plan, options);
  stats_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void ModelWeights::load_vectors(Device& device, const ModelSpec& spec, const MemoryPlan& plan) {
  vectors_ = device.allocate(plan.vectors);
  Buffer staging = device.allocate_pinned(plan.vectors);
  std::size_t offset = 0;
  const auto load = [&](const std::vector<TensorSpec>& vectors) {
    std::vector<const float*> out;
    for (const TensorSpec& v : vectors) {
      source_->read(v, 0, v.elements(), DType::kFloat32, staging.data() + offset);
      out.push_back(reinterpret_cast<const float*>(vectors_.data() + offset));
      offset += vector_stride(v);
    }
    return out;
  };
  model_vectors_ = load(spec.vectors);
  head_vectors_ = load(spec.head.vectors);
  for (const UnitSpec& block : spec.blocks) block_vectors_.push_back(load(block.vectors));
  const auto stream = device.make_stream("load");
  device.copy(vectors_.data(), staging.data(), offset, *stream);
  stream->synchronize();
}

void ModelWeights::load_shards(Device& device, Ops& ops, const MemoryPlan& plan,
                               const LoadOptions& options) {
  std::vector<int> units[3];
  std::vector<std::size_t> bytes[3];
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    const auto tier = static_cast<std::size_t>(plan.tiers[b]);
    units[tier].push_back(static_cast<int>(b));
    bytes[tier].push_back(plan.blocks[b].shard_bytes());
  }
  const auto of = [](Tier tier) { return static_cast<std::size_t>(tier); };

  stats_.loaded_bytes = plan.device_shards + plan.host_shards + plan.head_shard;
  Progress progress("loading weights", stats_.loaded_bytes, Progress::Unit::kBytes,
                    options.show_progress);
  const auto tell = [&](std::size_t done) { progress.add(done); };
  const auto reader_of = [&](const PartitionLayout& layout) {
    return ShardReader(*source_, layout, options.rank);
  };
  {
    ShardUploader uploader(device, ops, *source_, options, piece_bytes(plan));
    head_ = device.allocate(plan.head_shard);
    uploader.upload(plan.head.front(), head_.data(), tell);
    if (!units[of(Tier::kDevice)].empty()) {
      device_ =
          std::make_unique<DeviceStore>(device, units[of(Tier::kDevice)], bytes[of(Tier::kDevice)]);
    }
    for (int u : units[of(Tier::kDevice)]) {
      const PartitionLayout& layout = plan.blocks[static_cast<std::size_t>(u)];
      uploader.upload(layout, device_->shard(u).data(), tell);
    }
    uploader.finish();
  }
  if (!units[of(Tier::kHost)].empty()) {
    host_ = std::make_unique<HostStore>(device, units[of(Tier::kHost)], bytes[of(Tier::kHost)]);
  }
  for (int u : units[of(Tier::kHost)]) {
    read_shard(reader_of(plan.blocks[static_cast<std::size_t>(u)]), 0, host_->shard(u),
               options.threads, tell);
  }
  progress.clear();
  if (const auto& nvme_units = units[of(Tier::kNvme)]; !nvme_units.empty()) {
    std::vector<ShardReader> readers;
    for (int u : nvme_units) {
      readers.emplace_back(*source_, plan.blocks[static_cast<std::size_t>(u)], options.rank);
    }
    std::vector<const ShardReader*> pointers;
    for (const ShardReader& reader : readers) pointers.push_back(&reader);
    const ShardFileKey key{.model_identity = source_->identity(),
                           .model_name = options.model_name,
                           .world = options.world,
                           .rank = options.rank,
                           .dtype = plan.weight_dtype};
    stats_.shard_file_bytes = plan.nvme_shards;
    Progress writing("writing the shard file", plan.nvme_shards, Progress::Unit::kBytes,
                     options.show_progress);
    shard_file_ = prepare_shard_file(*options.nvme_path, key, nvme_units, pointers,
                                     [&](std::size_t done) { writing.add(done); });
    writing.clear();
    nvme_ = std::make_unique<NvmeStore>(device, shard_file_, key, NvmeOptions{});
  }
  for (Tier tier : plan.tiers) {
    store_of_block_.push_back(tier == Tier::kDevice ? static_cast<ShardStore*>(device_.get())
                              : tier == Tier::kHost ? static_cast<ShardStore*>(host_.get())
                                                    : nvme_.get());
  }
}

void ModelWeights::read_embedding_rows(std::span<const std::int32_t> ids, std::byte* dst) const {
  const std::int64_t hidden = embedding_.shape[1];
  const std::size_t row_bytes = static_cast<std::size_t>(hidden) * size_of(weight_dtype_);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    source_->read(embedding_, ids[i] * hidden, hidden, weight_dtype_, dst + i * row_bytes);
  }
}

}  // namespace zi
