#include "engine/travel_trial.h"

#include <algorithm>
#include <functional>
#include <memory>

#include "engine/exchange_ops.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

constexpr int kRepeats = 3;  // after one to warm up
constexpr std::int64_t kRowsFactor = 4;

/// The products of one block, both ways, on memory that holds zeros.
class BlockTrial {
 public:
  BlockTrial(World& world, Backend& backend, const Model& model, const MemoryPlan& plan,
             Buffer& slots)
      : world_(&world), backend_(&backend), model_(&model), plan_(&plan), slot_(slots.data()) {
    Device& device = *backend.device;
    // Collective calls stand outside of it.
    world.all_or_none([&] {
      memory_ = device.allocate(plan.workspace);
      exchange_memory_ = device.allocate(plan.product_exchange);
      compute_ = device.make_stream("compute");
      exchange_ = device.make_stream("gather", StreamPriority::kFirst);
      start_ = device.make_event();
      end_ = device.make_event();
      row_exchange_ = std::make_unique<RowExchange>(device, *backend.ops, *backend.communicator,
                                                    world.size(), exchange_memory_.data(),
                                                    exchange_memory_.bytes(), *exchange_);
      ops_ = std::make_unique<ExchangeOps>(
          std::shared_ptr<Ops>(std::shared_ptr<Ops>(), backend.ops.get()), *row_exchange_);
      device.zero(slot_, block().gathered_bytes(), *compute_);
      device.zero(memory_.data(), memory_.bytes(), *compute_);
      device.zero(exchange_memory_.data(), exchange_memory_.bytes(), *compute_);
      compute_->synchronize();
    });
  }

  double gather() {
    const std::size_t bytes = block().shard_bytes();
    return seconds(*exchange_, [&] {
      backend_->communicator->all_gather(slot_ + own_offset(), slot_, bytes, *exchange_);
    });
  }
  double products(std::int64_t rows, bool stay) {
    ops_->begin_pass(rows);
    return seconds(*compute_, [&] { enqueue_products(rows, stay); });
  }

 private:
  const PartitionLayout& block() const { return plan_->blocks.front(); }
  std::size_t own_offset() const {
    return static_cast<std::size_t>(world_->rank()) * block().shard_bytes();
  }

  /// In memory of the activations of a pass: the product, its inputs, what is made of it.
  void enqueue_products(std::int64_t rows, bool stay) {
    for (const BlockProduct& product : model_->products()) {
      std::vector<RowBlockMatrix> matrices;
      for (int i = product.first; i < product.first + product.count; ++i) {
        matrices.push_back(block().gathered(static_cast<std::size_t>(i), slot_));
        if (!stay) continue;
        matrices.back().data += own_offset();
        matrices.back().only_block = world_->rank();
      }
      const Matrices w(matrices);
      const DType type = plan_->compute_dtype;
      const auto bytes = [rows](std::int64_t columns, DType of) {
        return align_up(static_cast<std::size_t>(rows * columns) * size_of(of), kMatrixAlignment);
      };
      auto* const y = memory_.as<float>();
      std::byte* const a = memory_.data() + bytes(w.padded_rows(), DType::kFloat32);
      if (product.activated) {
        const Activate activate{.activation = model_->config().activation,
                                .up = product.count > 1 ? w.first(1) : -1};
        ops_->matmul_activate(a, type, rows, w, activate, y, a + bytes(w.cols(), type), type,
                              *compute_);
      } else {
        ops_->matmul(a, type, rows, w, y, *compute_);
      }
    }
  }

  /// The least of some repeats, each on the slowest rank.
  double seconds(Stream& stream, const std::function<void()>& enqueue) {
    double least = 0;
    for (int i = 0; i <= kRepeats; ++i) {
      stream.record(*start_);
      enqueue();
      stream.record(*end_);
      stream.synchronize();
      const double mine = backend_->device->elapsed_seconds(*start_, *end_);
      const double slowest = std::ranges::max(world_->all_gather(mine));
      if (i == 1 || (i > 1 && slowest < least)) least = slowest;
    }
    return least;
  }

  World* world_;
  Backend* backend_;
  const Model* model_;
  const MemoryPlan* plan_;
  std::byte* slot_;
  // Memory before streams: their destructors wait for the work that uses it.
  Buffer memory_;
  Buffer exchange_memory_;
  std::unique_ptr<Stream> compute_;
  std::unique_ptr<Stream> exchange_;
  std::unique_ptr<Event> start_;
  std::unique_ptr<Event> end_;
  std::unique_ptr<RowExchange> row_exchange_;
  std::unique_ptr<ExchangeOps> ops_;
};

}  // namespace

std::int64_t rows_to_stay(std::span<const TravelTimes> times, std::int64_t most) {
  const TravelTimes* before = nullptr;
  for (const TravelTimes& t : times) {
    if (t.staying > t.gathered) {
      if (before == nullptr) return 0;
      const double gain = before->gathered - before->staying;
      const double share = gain / (gain + t.staying - t.gathered);
      const auto further =
          static_cast<std::int64_t>(share * static_cast<double>(t.rows - before->rows));
      return std::min(most, before->rows + further);
    }
    before = &t;
  }
  return before == nullptr ? 0 : most;
}

std::vector<TravelTimes> measure_travel(World& world, Backend& backend, const Model& model,
                                        const MemoryPlan& plan, Buffer& slots) {
  BlockTrial trial(world, backend, model, plan, slots);
  const double gather = trial.gather();
  std::vector<TravelTimes> times;
  for (std::int64_t rows = 1;; rows = std::min(plan.pass_tokens, rows * kRowsFactor)) {
    times.push_back({.rows = rows,
                     .gathered = std::max(gather, trial.products(rows, false)),
                     .staying = trial.products(rows, true)});
    if (times.back().staying > times.back().gathered || rows == plan.pass_tokens) return times;
  }
}

}  // namespace zi
