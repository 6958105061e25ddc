#pragma once

#include <cstdint>
#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

#include "engine/memory_plan.h"

namespace zi {

/// oneDNN's own product of one row with weights as they lie, over a model's matrices in the order
/// of a pass.
class PlainProducts {
 public:
  explicit PlainProducts(const MemoryPlan& plan) : stream_(engine_) {
    for (const PartitionLayout& block : plan.blocks) add(block);
    add(plan.head.front());
    std::size_t longest = 0, widest = 0;
    for (const Product& p : products_) {
      longest = std::max(longest, static_cast<std::size_t>(p.cols));
      widest = std::max(widest, static_cast<std::size_t>(p.rows));
    }
    weights_.resize(bytes_ / 2);
    for (std::size_t i = 0; i < weights_.size(); ++i) {  // bfloat16 of ordinary size, none alike
      weights_[i] = static_cast<std::uint16_t>(0x3c00u + (i * 2654435761u >> 16) % 512);
    }
    input_.assign(longest, 0x3f80);
    output_.resize(widest);
  }

  std::size_t bytes() const { return bytes_; }
  void run() {
    for (Product& p : products_) {
      p.primitive.execute(stream_,
                          {{DNNL_ARG_SRC, {p.source, engine_, input_.data()}},
                           {DNNL_ARG_WEIGHTS, {p.weights, engine_, weights_.data() + p.first}},
                           {DNNL_ARG_DST, {p.product, engine_, output_.data()}}});
    }
    stream_.wait();
  }

 private:
  struct Product {
    std::int64_t rows, cols;
    std::size_t first;
    dnnl::memory::desc source, weights, product;
    dnnl::matmul primitive;
  };
  void add(const PartitionLayout& layout) {
    using Memory = dnnl::memory;
    for (const PartitionLayout::Matrix& m : layout.matrices()) {
      const std::int64_t rows = m.tensor.shape[0], cols = m.tensor.shape[1];
      const Memory::desc source({1, cols}, Memory::data_type::bf16, Memory::dims{cols, 1});
      const Memory::desc weights({cols, rows}, Memory::data_type::bf16, Memory::dims{1, cols});
      const Memory::desc product({1, rows}, Memory::data_type::f32, Memory::dims{rows, 1});
#if DNNL_VERSION_MAJOR >= 3
      const dnnl::matmul::primitive_desc made(engine_, source, weights, product);
#else
      const dnnl::matmul::primitive_desc made({source, weights, product}, engine_);
#endif
      products_.push_back({rows, cols, bytes_ / 2, source, weights, product, dnnl::matmul(made)});
      bytes_ += static_cast<std::size_t>(rows * cols) * 2;
    }
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_;
  std::vector<Product> products_;
  std::vector<std::uint16_t> weights_;
  std::vector<std::uint16_t> input_;
  std::vector<float> output_;
  std::size_t bytes_ = 0;
};

}  // namespace zi
