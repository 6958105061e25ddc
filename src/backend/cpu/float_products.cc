#include "backend/cpu/float_products.h"

#include <fmt/format.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl_debug.h>

#include <algorithm>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/cpu/simd.h"
#include "backend/host/scratch.h"
#include "packing/unpack_rows.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using Type = dnnl::memory::data_type;
using Tag = dnnl::memory::format_tag;

/// Activation rows of a tile: fills the kernels' narrowest register block, and with it one row
/// streams as fast.
constexpr std::int64_t kTileRows = 16;
/// Packed tiles in flight; for more rows than these hold, the weights stream again.
constexpr std::size_t kPackedTileBytes = 32u << 20;
constexpr std::int64_t kMinPackedTiles = 8;
/// Fewer activations than this are packed, and smaller matrices multiplied, before a second thread
/// has woken up.
constexpr std::int64_t kParallelConversions = 32 << 10;
constexpr std::size_t kParallelMatrixBytes = 128u << 10;

/// Weight rows of a chunk: as many as keep a core's second-level cache for the tiles. A function of
/// the row's length only, so that a row has the same bits however many ranks a matrix is cut over.
std::int64_t chunk_rows(std::int64_t cols) {
  const auto row_bytes = static_cast<std::size_t>(cols) * sizeof(float);
  if (64 * row_bytes <= (768u << 10)) return 64;
  return 32 * row_bytes <= (1u << 20) ? 32 : 16;
}

dnnl::matmul::primitive_desc describe(const dnnl::engine& engine, std::int64_t height,
                                      std::int64_t cols, Tag tag) {
  const dnnl::memory::desc source({height, cols}, Type::f32, dnnl::memory::dims{cols, 1});
  const dnnl::memory::desc weights({cols, kTileRows}, Type::f32, tag);
  const dnnl::memory::desc product({height, kTileRows}, Type::f32,
                                   dnnl::memory::dims{kTileRows, 1});
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
  return {engine, source, weights, product, attributes, true};
#else
  return {dnnl::matmul::desc(source, weights, product), attributes, engine, true};
#endif
}

/// Where element (k, row) of a tile lies: blocked layouts add an offset of k to an offset of the
/// row.
struct TileLayout {
  std::vector<std::int64_t> k;
  std::vector<std::int64_t> row;
};

TileLayout layout_of(const dnnl::memory::desc& desc, std::int64_t cols) {
#if DNNL_VERSION_MAJOR >= 3
  const auto strides = desc.get_strides();
  const auto blocks = desc.get_inner_blks();
  const auto dims = desc.get_inner_idxs();
#else
  const auto& blocking = desc.data.format_desc.blocking;
  const std::vector<std::int64_t> strides(blocking.strides, blocking.strides + 2);
  const std::vector<std::int64_t> blocks(blocking.inner_blks,
                                         blocking.inner_blks + blocking.inner_nblks);
  const std::vector<std::int64_t> dims(blocking.inner_idxs,
                                       blocking.inner_idxs + blocking.inner_nblks);
#endif
  const auto offset = [&](std::int64_t dim, std::int64_t index) {
    std::int64_t result = 0;
    std::int64_t stride = 1;
    for (std::size_t i = blocks.size(); i-- > 0;) {  // innermost last
      if (dims[i] == dim) {
        result += index % blocks[i] * stride;
        index /= blocks[i];
      }
      stride *= blocks[i];
    }
    return result + index * strides[static_cast<std::size_t>(dim)];
  };
  TileLayout layout;
  for (std::int64_t k = 0; k < cols; ++k) layout.k.push_back(offset(0, k));
  for (std::int64_t row = 0; row < kTileRows; ++row) layout.row.push_back(offset(1, row));
  return layout;
}

/// One product (height, cols) x (cols, 16) and what its calls need, made once.
struct Plan {
  dnnl::matmul primitive;
  TileLayout layout;
  std::size_t tile_bytes = 0;
  std::size_t scratchpad_bytes = 0;
  Scratch packed;  // of this plan alone: its padding must stay zero
  struct Arguments {
    dnnl::memory source, weights, product, scratchpad;
  };
  std::vector<Arguments> threads;
};

void pack_row(const float* row, const TileLayout& layout, std::int64_t column, float* tile) {
  tile += layout.row[static_cast<std::size_t>(column)];
  for (std::size_t k = 0; k < layout.k.size(); ++k) tile[layout.k[k]] = row[k];
}

/// oneDNN's own threads off while we hold the cores: primitives are cut for one thread.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

struct Chunk {
  std::int64_t block;
  std::int64_t first;  // row in the block at which the product starts
  std::int64_t keep;   // and the first one that no other chunk has
};

}  // namespace

struct FloatProducts::State {
  using Key = std::pair<std::int64_t, std::int64_t>;  // height, cols

  struct Thread {
    Scratch product, scratchpad, converted, row;
  };

  Plan& plan(std::int64_t height, std::int64_t cols);
  void prepare(Plan& plan);
  void run_group(Plan& plan, const void* a, DType a_dtype, std::int64_t rows,
                 const RowBlockMatrix& w, std::int64_t height, float* y, std::int64_t ld);
  dnnl_status_t run_chunk(Plan& plan, int thread, std::int64_t rows, const RowBlockMatrix& w,
                          std::int64_t height, const Chunk& chunk, float* y, std::int64_t ld);

  ThreadPool* pool = nullptr;
  int threads = 1;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  std::vector<dnnl::stream> streams;  // one a thread
  std::vector<Thread> scratch;
  std::map<Key, Plan> plans;
};

Plan& FloatProducts::State::plan(std::int64_t height, std::int64_t cols) {
  const Key key{height, cols};
  if (const auto found = plans.find(key); found != plans.end()) return found->second;

  // The layout as wide as the tile; `any` would pad it to 64 columns, four times the memory.
  auto description = describe(engine, height, cols, Tag::BA16a16b);
  if (!description || std::string_view(description.impl_info_str()).substr(0, 3) == "ref") {
    description = describe(engine, height, cols, Tag::any);
  }
  if (!description) {
    throw Error(fmt::format("oneDNN has no float32 product of ({}, {}) with ({}, {}) on this CPU",
                            height, cols, cols, kTileRows));
  }
  Plan plan;
  plan.primitive = dnnl::matmul(description);
  plan.layout = layout_of(description.weights_desc(), cols);
  plan.tile_bytes = align_up(description.weights_desc().get_size(), 64);
  plan.scratchpad_bytes = description.scratchpad_desc().get_size();
  for (int thread = 0; thread < threads; ++thread) {
    const auto empty = [&](const dnnl::memory::desc& desc) {
      return dnnl::memory(desc, engine, nullptr);
    };
    plan.threads.push_back({empty(description.src_desc()), empty(description.weights_desc()),
                            empty(description.dst_desc()), empty(description.scratchpad_desc())});
  }
  return plans.emplace(key, std::move(plan)).first->second;
}

void FloatProducts::State::prepare(Plan& plan) {
  for (int thread = 0; thread < threads; ++thread) {
    auto& own = scratch[static_cast<std::size_t>(thread)];
    auto& arguments = plan.threads[static_cast<std::size_t>(thread)];
    own.scratchpad.reserve(plan.scratchpad_bytes);
    arguments.product.set_data_handle(own.product.data());
    if (plan.scratchpad_bytes > 0) arguments.scratchpad.set_data_handle(own.scratchpad.data());
  }
}

dnnl_status_t FloatProducts::State::run_chunk(Plan& plan, int thread, std::int64_t rows,
                                              const RowBlockMatrix& w, std::int64_t height,
                                              const Chunk& chunk, float* y, std::int64_t ld) {
  auto& own = scratch[static_cast<std::size_t>(thread)];
  auto& arguments = plan.threads[static_cast<std::size_t>(thread)];
  const std::size_t row_bytes = w.row_bytes();
  const std::byte* source = w.data + static_cast<std::size_t>(chunk.block) * w.block_stride_bytes +
                            static_cast<std::size_t>(chunk.first) * row_bytes;
  if (w.format.packed()) {
    unpack_rows(source, height, w.cols, w.format, DType::kFloat32, own.converted.data());
    source = own.converted.data();
  } else if (w.format != DType::kFloat32) {
    auto* converted = reinterpret_cast<float*>(own.converted.data());
    simd::to_float(source, w.format.dtype, converted, static_cast<std::size_t>(height * w.cols));
    source = own.converted.data();
  }
  arguments.source.set_data_handle(const_cast<std::byte*>(source));
  const auto* product = reinterpret_cast<const float*>(own.product.data());
  for (std::int64_t row = 0; row < rows; row += kTileRows) {
    arguments.weights.set_data_handle(plan.packed.data() +
                                      static_cast<std::size_t>(row / kTileRows) * plan.tile_bytes);
    // The C call: the C++ one allocates a list of arguments each time.
    const dnnl_exec_arg_t list[] = {{DNNL_ARG_SRC, arguments.source.get()},
                                    {DNNL_ARG_WEIGHTS, arguments.weights.get()},
                                    {DNNL_ARG_DST, arguments.product.get()},
                                    {DNNL_ARG_SCRATCHPAD, arguments.scratchpad.get()}};
    const dnnl_status_t status = dnnl_primitive_execute(
        plan.primitive.get(), streams[static_cast<std::size_t>(thread)].get(), 4, list);
    if (status != dnnl_success) return status;
    const std::int64_t columns = std::min(kTileRows, rows - row);
    for (std::int64_t column = 0; column < columns; ++column) {
      float* out = y + (row + column) * ld + chunk.block * w.rows_per_block + chunk.first;
      for (std::int64_t i = chunk.keep - chunk.first; i < height; ++i) {
        out[i] = product[i * kTileRows + column];
      }
    }
  }
  return dnnl_success;
}

void FloatProducts::State::run_group(Plan& plan, const void* a, DType a_dtype, std::int64_t rows,
                                     const RowBlockMatrix& w, std::int64_t height, float* y,
                                     std::int64_t ld) {
  const std::int64_t chunks_per_block = ceil_div(w.rows_per_block, height);
  const std::int64_t chunks = chunks_per_block * w.blocks;
  const auto row_bytes = static_cast<std::size_t>(w.cols) * size_of(a_dtype);
  const auto pack_one = [&](std::int64_t row, int thread) {
    const auto* in = static_cast<const std::byte*>(a) + static_cast<std::size_t>(row) * row_bytes;
    std::byte* tile =
        plan.packed.data() + static_cast<std::size_t>(row / kTileRows) * plan.tile_bytes;
    auto* converted =
        reinterpret_cast<float*>(scratch[static_cast<std::size_t>(thread)].row.data());
    simd::to_float(in, a_dtype, converted, static_cast<std::size_t>(w.cols));
    pack_row(converted, plan.layout, row % kTileRows, reinterpret_cast<float*>(tile));
  };
  pool->run(rows, pack_one, rows * w.cols >= kParallelConversions);
  const auto multiply_chunk = [&](std::int64_t index, int thread) {
    // The last chunk of a block starts early instead of being lower: its height is part of the
    // sums.
    const std::int64_t keep = index % chunks_per_block * height;
    const Chunk chunk{index / chunks_per_block, std::min(keep, w.rows_per_block - height), keep};
    const dnnl_status_t status = run_chunk(plan, thread, rows, w, height, chunk, y, ld);
    if (status != dnnl_success) {
      throw Error(fmt::format("oneDNN failed in a product ({}, {}) x ({}, {}): {}", w.padded_rows(),
                              w.cols, w.cols, rows, dnnl_status2str(status)));
    }
  };
  pool->run(chunks, multiply_chunk, w.bytes() >= kParallelMatrixBytes);
}

FloatProducts::FloatProducts(ThreadPool& pool) : state_(std::make_unique<State>()) {
  state_->pool = &pool;
  const int threads = state_->threads = pool.threads();
  state_->scratch.resize(static_cast<std::size_t>(threads));
  for (int i = 0; i < threads; ++i) state_->streams.emplace_back(state_->engine);
  for (auto& own : state_->scratch) own.product.reserve(64 * kTileRows * sizeof(float));
}

FloatProducts::~FloatProducts() = default;

void FloatProducts::run(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w,
                        float* y, std::int64_t ld) try {
  if (rows == 0 || w.padded_rows() == 0) return;
  const OneThread one_thread;
  const std::int64_t height = std::min(chunk_rows(w.cols), w.rows_per_block);
  Plan& plan = state_->plan(height, w.cols);
  state_->prepare(plan);
  for (auto& own : state_->scratch) {
    own.row.reserve(static_cast<std::size_t>(w.cols) * sizeof(float));
    if (w.format != DType::kFloat32) {
      own.converted.reserve(static_cast<std::size_t>(height * w.cols) * sizeof(float));
    }
  }
  const std::int64_t group_tiles =
      std::max(kMinPackedTiles, static_cast<std::int64_t>(kPackedTileBytes / plan.tile_bytes));
  const std::int64_t group_rows = std::min(group_tiles, ceil_div(rows, kTileRows)) * kTileRows;
  plan.packed.reserve(static_cast<std::size_t>(group_rows / kTileRows) * plan.tile_bytes);
  for (std::int64_t row = 0; row < rows; row += group_rows) {
    state_->run_group(plan,
                      static_cast<const std::byte*>(a) +
                          static_cast<std::size_t>(row * w.cols) * size_of(a_dtype),
                      a_dtype, std::min(group_rows, rows - row), w, height, y + row * ld, ld);
  }
} catch (const dnnl::error& error) {
  throw Error(fmt::format("oneDNN failed in a product ({}, {}) x ({}, {}): {}", w.padded_rows(),
                          w.cols, w.cols, rows, error.what()));
}

}  // namespace zi
