// A product of one matrix with few rows beside what bounds it, a JSON line on stdout for each
// format of weights and number of rows: the read of the weights, next to a bare copy in the same
// device's memory.
//
//   build/benchmarks/product_benchmark [--outputs N] [--columns N] [--formats NAME[,NAME..]]
//     [--rows N[,N..]] [--dtype bfloat16|float16] [--backend auto|cpu|cuda] [--repeats N]
//
// Formats are dtypes or the names of packed formats, as int4g128f16z. The calls go around several
// matrices' weights, as those of a pass do, so that no cache holds them. The time to compare with
// is weight_bytes over limit_gb_s: of 4096 x 4096 in int4g128f16z, 9.0 MB over the 4.2 TB/s of an
// H200, 2.1 us.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "benchmark_main.h"
#include "call_seconds.h"
#include "engine/backend_choice.h"
#include "measure/bare_rates.h"
#include "run_options.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

struct Options : RunOptions {
  std::int64_t outputs = 4096;
  std::int64_t columns = 4096;
  std::vector<std::string> formats = {"bfloat16", "int8g32f8", "int4g16f8", "int4g128f16z"};
  std::vector<std::int64_t> rows = {1, 8, 16, 32, 64};
  std::string dtype = "bfloat16";
};

WeightFormat format_named(const std::string& name) {
  if (const auto packed = packed_format_named(name)) return *packed;
  return parse_dtype(name);
}

/// A row of any codes, zero points near their middle and scales of 1 / 32.
std::vector<std::byte> any_row(const WeightFormat& format, std::int64_t cols,
                               std::mt19937& random) {
  std::vector<std::byte> row(format.row_bytes(cols));
  const auto codes = static_cast<std::size_t>(
      format.kind == WeightFormat::Kind::kInt4 ? ceil_div(cols, 32) * 16 : ceil_div(cols, 16) * 16);
  for (std::size_t i = 0; i < codes; ++i) {
    row[i] = static_cast<std::byte>(random() & 0xbfu);  // of float8: numbers
  }
  const std::size_t scale_bytes = size_of(format.scale);
  for (std::int64_t g = 0; g < format.groups(cols); ++g) {
    std::byte* const at =
        row.data() + format.scales_at(cols) + static_cast<std::size_t>(g) * scale_bytes;
    const float scale = 1.0f / 32;
    if (format.scale == ScaleType::kFloat8) {
      *at = std::byte{80};  // 1 / 32, of int4 codes
    } else {
      const DType type = format.scale == ScaleType::kFloat32   ? DType::kFloat32
                         : format.scale == ScaleType::kFloat16 ? DType::kFloat16
                                                               : DType::kBFloat16;
      convert(&scale, DType::kFloat32, at, type, 1);
    }
    if (format.zeros) {
      const bool int4 = format.kind == WeightFormat::Kind::kInt4;
      row[format.zeros_at(cols) + static_cast<std::size_t>(g)] =
          static_cast<std::byte>(int4 ? 56 : 3);
    }
  }
  return row;
}

/// Matrices of one format on the device, and activations.
class Case {
 public:
  Case(const Backend& backend, Stream& stream, const Options& o, const WeightFormat& format,
       std::int64_t rows)
      : ops_(*backend.ops), stream_(stream), dtype_(parse_dtype(o.dtype)), rows_(rows) {
    w_ = {nullptr, o.outputs, o.columns, 1, o.outputs, 0, format};
    w_.block_stride_bytes = align_up(w_.bytes(), kMatrixAlignment);
    // Ten times the second-level cache of a large GPU.
    matrices_ = static_cast<std::size_t>(
        ceil_div(std::int64_t{512} << 20, static_cast<std::int64_t>(w_.block_stride_bytes)));
    Device& device = *backend.device;
    memory_ = device.allocate(matrices_ * w_.block_stride_bytes);
    a_ = device.allocate(static_cast<std::size_t>(rows * o.columns) * size_of(dtype_));
    y_ = device.allocate(static_cast<std::size_t>(rows * o.outputs) * sizeof(float));
    const UniformValues values{.key = 1, .half_width = 1, .stored = dtype_};
    ops_.fill_uniform(values, 0, rows * o.columns, a_.data(), dtype_, stream);
    std::vector<std::byte> host;  // until it is copied
    if (!format.packed()) {
      ops_.fill_uniform(values, 0,
                        static_cast<std::int64_t>(memory_.bytes() / size_of(format.dtype)),
                        memory_.data(), format.dtype, stream);
    } else {
      std::mt19937 random(1);
      const auto row_bytes = w_.row_bytes();
      std::vector<std::vector<std::byte>> some;
      for (int i = 0; i < 61; ++i) some.push_back(any_row(format, o.columns, random));
      for (std::int64_t r = 0; r < o.outputs; ++r) {
        const auto& row = some[static_cast<std::size_t>(r) % some.size()];
        host.insert(host.end(), row.begin(), row.end());
      }
      for (std::size_t m = 0; m < matrices_; ++m) {
        device.copy(memory_.data() + m * w_.block_stride_bytes, host.data(),
                    static_cast<std::size_t>(o.outputs) * row_bytes, stream);
      }
    }
    stream.synchronize();
  }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  /// Enqueues the product with the next matrix.
  void multiply() {
    w_.data = memory_.data() + next_++ % matrices_ * w_.block_stride_bytes;
    ops_.matmul(a_.data(), dtype_, rows_, w_, y_.as<float>(), stream_);
  }

  double weight_bytes() const { return static_cast<double>(w_.bytes()); }
  std::size_t matrices() const { return matrices_; }

 private:
  Ops& ops_;
  Stream& stream_;
  DType dtype_;
  std::int64_t rows_;
  RowBlockMatrix w_;
  std::size_t matrices_ = 1, next_ = 0;
  Buffer memory_, a_, y_;
};

void run_case(World& world, const Backend& backend, Stream& stream, const Options& o,
              const std::string& format, std::int64_t rows, const BareRate& copy) {
  Case products(backend, stream, o, format_named(format), rows);
  const double bytes = products.weight_bytes();
  const auto seconds = call_seconds(*backend.device, stream, o.repeats, products.matrices(), bytes,
                                    [&] { products.multiply(); });
  const double median = seconds[seconds.size() / 2];
  const double operations =
      2.0 * static_cast<double>(rows) * static_cast<double>(o.outputs * o.columns);
  const nlohmann::ordered_json line = {
      {"name", "product"},
      {"commit", o.commit},
      {"machine", o.machine},
      {"world", world.size()},
      {"command", o.command},
      {"backend", backend.name},
      {"dtype", o.dtype},
      {"weights", format},
      {"rows", rows},
      {"outputs", o.outputs},
      {"columns", o.columns},
      {"weight_bytes", bytes},
      {"operations", operations},
      {"us", median * 1e6},
      {"us_min", seconds.front() * 1e6},
      {"us_max", seconds.back() * 1e6},
      {"achieved_gb_s", bytes / median * 1e-9},
      {"limit_gb_s", copy.slowest * 1e-9},
      {"limit_how", "a bare copy in device memory, reads plus writes"},
      {"ratio", bytes / median / copy.slowest},
      {"achieved_tflop_s", operations / median * 1e-12}};
  fmt::print("{}\n", line.dump());
  std::fflush(stdout);
}

int run(World& world, const Options& o) {
  set_log(LogLevel::kQuiet, "");
  RunConfig config;
  config.backend = o.choice();
  const Backend backend = make_backend(world, config);
  const auto stream = backend.device->make_stream("compute");
  const BareRate copy = memory_copy_rate(world, *backend.device, std::size_t{1} << 30, *stream, {});
  for (const std::string& format : o.formats) {
    for (const std::int64_t rows : o.rows) {
      run_case(world, backend, *stream, o, format, rows, copy);
    }
  }
  return 0;
}

}  // namespace
}  // namespace zi

int main(int argc, char** argv) {
  return zi::benchmark_main<zi::Options>(
      argc, argv, "product_benchmark", "A product of one matrix, and the copy rate that bounds it",
      [](CLI::App& app, zi::Options& o) {
        app.add_option("--outputs", o.outputs, "rows of the matrix")->check(CLI::PositiveNumber);
        app.add_option("--columns", o.columns, "of the matrix")->check(CLI::PositiveNumber);
        app.add_option("--formats", o.formats, "of the weights")->delimiter(',');
        app.add_option("--rows", o.rows, "of activations")
            ->delimiter(',')
            ->check(CLI::PositiveNumber);
        app.add_option("--dtype", o.dtype, "of the activations")
            ->check(CLI::IsMember({"bfloat16", "float16"}));
      });
}
