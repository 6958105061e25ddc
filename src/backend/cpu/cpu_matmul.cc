#include "backend/cpu/cpu_matmul.h"

#include <fmt/format.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl_debug.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <oneapi/dnnl/dnnl.hpp>
#include <string_view>
#include <tuple>
#include <vector>

#include "backend/cpu/simd.h"
#include "packing/unpack_rows.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using Type = dnnl::memory::data_type;
using Tag = dnnl::memory::format_tag;

/// Activation rows of a tile: fills the kernels' narrowest register block, and with it one row
/// streams as fast.
constexpr std::int64_t kTileRows = 16;
/// Packed tiles in flight; for more rows than these hold, the weights stream again.
constexpr std::size_t kPackedBytes = 32u << 20;
constexpr std::int64_t kMinPackedTiles = 8;
/// Fewer activations than this are packed, and smaller matrices multiplied, before a second thread
/// has woken up.
constexpr std::int64_t kParallelActivations = 32 << 10;
constexpr std::size_t kParallelMatrixBytes = 128u << 10;

/// Aligned, zeroed host memory that grows and never shrinks.
class Scratch {
 public:
  void reserve(std::size_t bytes) {
    if (bytes <= bytes_) return;
    bytes = align_up(bytes, kPageBytes);
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, bytes)));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes);
    bytes_ = bytes;
  }
  std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t bytes_ = 0;
};

/// Weight rows of a chunk: as many as keep a core's second-level cache for the tiles. A function of
/// the row's length only, so that a row has the same bits however many ranks a matrix is cut over.
std::int64_t chunk_rows(std::int64_t cols, std::size_t element_bytes) {
  const auto row_bytes = static_cast<std::size_t>(cols) * element_bytes;
  if (64 * row_bytes <= (768u << 10)) return 64;
  return 32 * row_bytes <= (1u << 20) ? 32 : 16;
}

dnnl::matmul::primitive_desc describe(const dnnl::engine& engine, std::int64_t height,
                                      std::int64_t cols, Type type, Tag tag) {
  const dnnl::memory::desc source({height, cols}, type, dnnl::memory::dims{cols, 1});
  const dnnl::memory::desc weights({cols, kTileRows}, type, tag);
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
  bool pairs = false;  // k = 2i and 2i + 1 are neighbours in 16-bit layouts
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
  layout.pairs = cols % 2 == 0;
  for (std::size_t k = 0; layout.pairs && k + 1 < layout.k.size(); k += 2) {
    layout.pairs = layout.k[k + 1] == layout.k[k] + 1;
  }
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

template <typename T>
void pack(const T* row, const TileLayout& layout, std::int64_t column, T* tile) {
  tile += layout.row[static_cast<std::size_t>(column)];
  const std::size_t cols = layout.k.size();
  if (sizeof(T) == 2 && layout.pairs) {
    for (std::size_t k = 0; k < cols; k += 2)
      std::memcpy(tile + layout.k[k], row + k, 2 * sizeof(T));
  } else {
    for (std::size_t k = 0; k < cols; ++k) tile[layout.k[k]] = row[k];
  }
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

struct CpuMatmul::State {
  using Key = std::tuple<std::int64_t, std::int64_t, bool>;  // height, cols, bfloat16

  struct Thread {
    Scratch product, scratchpad, converted, row;
  };

  Plan& plan(std::int64_t height, std::int64_t cols, bool bfloat16);
  void prepare(Plan& plan);
  bool multiplies_bfloat16();
  void run_group(Plan& plan, const void* a, DType a_dtype, std::int64_t rows,
                 const RowBlockMatrix& w, bool bfloat16, std::int64_t height, float* y,
                 std::int64_t ld);
  dnnl_status_t run_chunk(Plan& plan, int thread, std::int64_t rows, const RowBlockMatrix& w,
                          bool bfloat16, std::int64_t height, const Chunk& chunk, float* y,
                          std::int64_t ld);

  ThreadPool* pool = nullptr;
  int threads = 1;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  std::vector<dnnl::stream> streams;  // one a thread
  std::vector<Thread> scratch;
  std::map<Key, Plan> plans;
  int bfloat16_state = -1;  // not asked yet, no, yes
};

bool CpuMatmul::State::multiplies_bfloat16() {
  if (bfloat16_state < 0) {
    const auto probe = describe(engine, 64, 1024, Type::bf16, Tag::any);
    const bool good = probe && std::string_view(probe.impl_info_str()).substr(0, 3) != "ref";
    if (!good) {
      log_warning(
          "this CPU has no bfloat16 products: weights are converted to float32 as they are used");
    }
    bfloat16_state = good ? 1 : 0;
  }
  return bfloat16_state == 1;
}

Plan& CpuMatmul::State::plan(std::int64_t height, std::int64_t cols, bool bfloat16) {
  const Key key{height, cols, bfloat16};
  if (const auto found = plans.find(key); found != plans.end()) return found->second;

  const Type type = bfloat16 ? Type::bf16 : Type::f32;
  // The layout as wide as the tile; `any` would pad it to 64 columns, four times the memory.
  auto description =
      describe(engine, height, cols, type, bfloat16 ? Tag::BA16a16b2a : Tag::BA16a16b);
  if (!description || std::string_view(description.impl_info_str()).substr(0, 3) == "ref") {
    description = describe(engine, height, cols, type, Tag::any);
  }
  if (!description) {
    throw Error(fmt::format("oneDNN has no {} product of ({}, {}) with ({}, {}) on this CPU",
                            bfloat16 ? "bfloat16" : "float32", height, cols, cols, kTileRows));
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

void CpuMatmul::State::prepare(Plan& plan) {
  for (int thread = 0; thread < threads; ++thread) {
    auto& own = scratch[static_cast<std::size_t>(thread)];
    auto& arguments = plan.threads[static_cast<std::size_t>(thread)];
    own.scratchpad.reserve(plan.scratchpad_bytes);
    arguments.product.set_data_handle(own.product.data());
    if (plan.scratchpad_bytes > 0) arguments.scratchpad.set_data_handle(own.scratchpad.data());
  }
}

dnnl_status_t CpuMatmul::State::run_chunk(Plan& plan, int thread, std::int64_t rows,
                                          const RowBlockMatrix& w, bool bfloat16,
                                          std::int64_t height, const Chunk& chunk, float* y,
                                          std::int64_t ld) {
  auto& own = scratch[static_cast<std::size_t>(thread)];
  auto& arguments = plan.threads[static_cast<std::size_t>(thread)];
  const std::size_t row_bytes = w.row_bytes();
  const std::byte* source = w.data + static_cast<std::size_t>(chunk.block) * w.block_stride_bytes +
                            static_cast<std::size_t>(chunk.first) * row_bytes;
  if (w.format.packed()) {
    const DType to = bfloat16 ? DType::kBFloat16 : DType::kFloat32;
    unpack_rows(source, height, w.cols, w.format, to, own.converted.data());
    source = own.converted.data();
  } else if (!bfloat16 && w.format != DType::kFloat32) {
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

void CpuMatmul::State::run_group(Plan& plan, const void* a, DType a_dtype, std::int64_t rows,
                                 const RowBlockMatrix& w, bool bfloat16, std::int64_t height,
                                 float* y, std::int64_t ld) {
  const std::int64_t chunks_per_block = ceil_div(w.rows_per_block, height);
  const std::int64_t chunks = chunks_per_block * w.blocks;
  const auto row_bytes = static_cast<std::size_t>(w.cols) * size_of(a_dtype);
  const auto pack_row = [&](std::int64_t row, int thread) {
    const auto* in = static_cast<const std::byte*>(a) + static_cast<std::size_t>(row) * row_bytes;
    std::byte* tile =
        plan.packed.data() + static_cast<std::size_t>(row / kTileRows) * plan.tile_bytes;
    if (bfloat16) {
      pack(reinterpret_cast<const std::uint16_t*>(in), plan.layout, row % kTileRows,
           reinterpret_cast<std::uint16_t*>(tile));
    } else {
      auto* converted =
          reinterpret_cast<float*>(scratch[static_cast<std::size_t>(thread)].row.data());
      simd::to_float(in, a_dtype, converted, static_cast<std::size_t>(w.cols));
      pack(converted, plan.layout, row % kTileRows, reinterpret_cast<float*>(tile));
    }
  };
  pool->run(rows, pack_row, rows * w.cols >= kParallelActivations);
  const auto multiply_chunk = [&](std::int64_t index, int thread) {
    // The last chunk of a block starts early instead of being lower: its height is part of the
    // sums.
    const std::int64_t keep = index % chunks_per_block * height;
    const Chunk chunk{index / chunks_per_block, std::min(keep, w.rows_per_block - height), keep};
    const dnnl_status_t status = run_chunk(plan, thread, rows, w, bfloat16, height, chunk, y, ld);
    if (status != dnnl_success) {
      throw Error(fmt::format("oneDNN failed in a product ({}, {}) x ({}, {}): {}", w.padded_rows(),
                              w.cols, w.cols, rows, dnnl_status2str(status)));
    }
  };
  pool->run(chunks, multiply_chunk, w.bytes() >= kParallelMatrixBytes);
}

CpuMatmul::CpuMatmul(ThreadPool& pool) : state_(std::make_unique<State>()) {
  state_->pool = &pool;
  const int threads = state_->threads = pool.threads();
  state_->scratch.resize(static_cast<std::size_t>(threads));
  for (int i = 0; i < threads; ++i) state_->streams.emplace_back(state_->engine);
  for (auto& own : state_->scratch) own.product.reserve(64 * kTileRows * sizeof(float));
}

CpuMatmul::~CpuMatmul() = default;

void CpuMatmul::run(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w,
                    float* y, std::int64_t ld) try {
  if (rows == 0 || w.padded_rows() == 0) return;
  const OneThread one_thread;
  const bool bfloat16 = a_dtype == DType::kBFloat16 &&
                        (w.format.packed() || w.format == DType::kBFloat16) &&
                        state_->multiplies_bfloat16();
  const std::int64_t height = std::min(chunk_rows(w.cols, bfloat16 ? 2 : 4), w.rows_per_block);
  Plan& plan = state_->plan(height, w.cols, bfloat16);
  state_->prepare(plan);
  const std::size_t element = bfloat16 ? 2 : sizeof(float);
  for (auto& own : state_->scratch) {
    if (!bfloat16) own.row.reserve(static_cast<std::size_t>(w.cols) * element);
    if (w.format != (bfloat16 ? DType::kBFloat16 : DType::kFloat32)) {
      own.converted.reserve(static_cast<std::size_t>(height * w.cols) * element);
    }
  }
  const std::int64_t group_tiles =
      std::max(kMinPackedTiles, static_cast<std::int64_t>(kPackedBytes / plan.tile_bytes));
  const std::int64_t group_rows = std::min(group_tiles, ceil_div(rows, kTileRows)) * kTileRows;
  plan.packed.reserve(static_cast<std::size_t>(group_rows / kTileRows) * plan.tile_bytes);
  for (std::int64_t row = 0; row < rows; row += group_rows) {
    state_->run_group(plan,
                      static_cast<const std::byte*>(a) +
                          static_cast<std::size_t>(row * w.cols) * size_of(a_dtype),
                      a_dtype, std::min(group_rows, rows - row), w, bfloat16, height, y + row * ld,
                      ld);
  }
} catch (const dnnl::error& error) {
  throw Error(fmt::format("oneDNN failed in a product ({}, {}) x ({}, {}): {}", w.padded_rows(),
                          w.cols, w.cols, rows, error.what()));
}

}  // namespace zi
