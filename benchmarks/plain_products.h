#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <string_view>
#include <vector>

#include "engine/memory_plan.h"

namespace zi {

/// oneDNN's own product of one row with weights as they lie, over a model's matrices in the order
/// of a pass: in bfloat16, or in float32 where oneDNN has no bfloat16 products for this CPU.
class PlainProducts {
 public:
  explicit PlainProducts(const MemoryPlan& plan) : stream_(engine_) {
    const PartitionLayout& first = plan.blocks.front();
    if (!multiplies_bfloat16(first.matrices().front())) type_ = Type::f32;
    for (const PartitionLayout& block : plan.blocks) add(block);
    add(plan.head.front());
    std::size_t longest = 0, widest = 0;
    for (const Product& p : products_) {
      longest = std::max(longest, static_cast<std::size_t>(p.cols));
      widest = std::max(widest, static_cast<std::size_t>(p.rows));
    }
    weights_.resize(elements_ * element_bytes());
    for (std::size_t i = 0; i < elements_; ++i) {  // of ordinary size, none alike
      put(weights_, i, static_cast<std::uint16_t>(0x3c00u + (i * 2654435761u >> 16) % 512));
    }
    input_.resize(longest * element_bytes());
    for (std::size_t i = 0; i < longest; ++i) put(input_, i, 0x3f80);  // 1
    output_.resize(widest);
  }

  bool in_bfloat16() const { return type_ == Type::bf16; }
  /// Of all matrices, in bfloat16.
  std::size_t bytes() const { return elements_ * 2; }
  void run() {
    for (Product& p : products_) {
      p.primitive.execute(
          stream_,
          {{DNNL_ARG_SRC, {p.source, engine_, input_.data()}},
           {DNNL_ARG_WEIGHTS, {p.weights, engine_, weights_.data() + p.first * element_bytes()}},
           {DNNL_ARG_DST, {p.product, engine_, output_.data()}}});
    }
    stream_.wait();
  }

 private:
  using Memory = dnnl::memory;
  using Type = Memory::data_type;
  struct Product {
    std::int64_t rows, cols;
    std::size_t first;  // element
    Memory::desc source, weights, product;
    dnnl::matmul primitive;
  };

  static dnnl::matmul::primitive_desc describe(const dnnl::engine& engine,
                                               const Memory::desc& source,
                                               const Memory::desc& weights,
                                               const Memory::desc& product) {
#if DNNL_VERSION_MAJOR >= 3
    return {engine, source, weights, product, dnnl::primitive_attr(), true};
#else
    return {{source, weights, product}, engine, true};
#endif
  }
  struct Operands {
    Memory::desc source, weights, product;
  };
  static Operands operands(const PartitionLayout::Matrix& m, Type type) {
    const std::int64_t rows = m.tensor.shape[0], cols = m.tensor.shape[1];
    return {{{1, cols}, type, Memory::dims{cols, 1}},
            {{cols, rows}, type, Memory::dims{1, cols}},
            {{1, rows}, Type::f32, Memory::dims{rows, 1}}};
  }
  /// Its reference code for everything, which is slow, does not count.
  bool multiplies_bfloat16(const PartitionLayout::Matrix& m) const {
    const Operands o = operands(m, Type::bf16);
    const auto made = describe(engine_, o.source, o.weights, o.product);
    return made && std::string_view(made.impl_info_str()).substr(0, 3) != "ref";
  }
  void add(const PartitionLayout& layout) {
    for (const PartitionLayout::Matrix& m : layout.matrices()) {
      const Operands o = operands(m, type_);
      const dnnl::matmul primitive(describe(engine_, o.source, o.weights, o.product));
      const std::int64_t rows = m.tensor.shape[0], cols = m.tensor.shape[1];
      products_.push_back({rows, cols, elements_, o.source, o.weights, o.product, primitive});
      elements_ += static_cast<std::size_t>(rows * cols);
    }
  }

  std::size_t element_bytes() const { return in_bfloat16() ? 2 : 4; }
  void put(std::vector<std::byte>& to, std::size_t index, std::uint16_t bfloat16) const {
    const std::uint32_t bits = std::uint32_t{bfloat16} << 16;  // the upper half of a float32
    std::memcpy(to.data() + index * element_bytes(),
                reinterpret_cast<const std::byte*>(&bits) + (in_bfloat16() ? 2 : 0),
                element_bytes());
  }

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_;
  Type type_ = Type::bf16;
  std::vector<Product> products_;
  std::vector<std::byte> weights_;
  std::vector<std::byte> input_;
  std::vector<float> output_;
  std::size_t elements_ = 0;
};

}  // namespace zi
