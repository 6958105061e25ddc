#pragma once

#include "backend/cuda/packed_mma.cuh"
#include "backend/cuda/packed_wgmma.cuh"

/// How kernels for packed weights are chosen and launched, whatever their fragments.
namespace zi {

/// Rows of activations at most.
inline constexpr std::int64_t kMostPackedRows = 64;

/// A product, but for what is done with its sums.
struct PackedProduct {
  const void* a;
  std::int64_t rows;
  const Matrices& w;
  RowScales scales;
  std::span<std::byte> scratch;   // of ordered activations
  const ClusterCounts& clusters;  // of the kernels
  cudaStream_t stream;
};

inline std::size_t ordered_bytes(std::int64_t cols) {
  return static_cast<std::size_t>(ordered_units(cols)) * ordered_unit_bytes(kMostPackedRows);
}

/// The kernels for fragments of a type and an output.
template <typename T, template <typename> typename Format, typename Output>
class PackedKernels {
  using Fragments = Format<T>;
  static constexpr std::int64_t kMostMmaRows = Fragments::kMostMmaRows;

 public:
  /// Lets the kernels have their shared memory.
  static void prepare() {
    const auto allow = [](auto* kernel, int bytes) {
      allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
    };
    for (const std::int64_t rows : {8, 16, 32, 64}) {
      if (rows <= kMostMmaRows) {
        with_mma_kernel(rows, allow);
      } else if (rows <= Fragments::kMostRows) {
        with_wgmma_kernel(rows, allow);
      }
    }
  }

  static void launch(const PackedProduct& product, const Output& out) {
    const Matrices& w = product.w;
    const auto cols = static_cast<int>(w.cols());
    // The same for mixed and unmixed tiles, so that sums are the same.
    const auto whole_tiles =
        static_cast<int>((w.padded_rows() + kWideTileRows - 1) / kWideTileRows);
    const int splits = cluster_splits(product.clusters, whole_tiles, cols, kFewestPackedCols);
    const PackedArgs<Output> args{
        {{streamed(w, product.a, product.rows, kWideTileRows, Output::kMixed), splits}, out},
        product.scales};
    const auto launch_kernel = [&](auto* kernel, int bytes, const auto& of_kernel) {
      const auto blocks = static_cast<unsigned>(
          splits > 1 ? args.tiles * splits : std::min(args.tiles, product.clusters[1]));
      launch_clusters_early(kernel, static_cast<unsigned>(splits), blocks, kWideThreads,
                            static_cast<std::size_t>(bytes), product.stream, of_kernel);
    };
    if (product.rows <= kMostMmaRows) {
      with_mma_kernel(product.rows,
                      [&](auto* kernel, int bytes) { launch_kernel(kernel, bytes, args); });
    } else {
      launch_order(product, cols);
      with_wgmma_kernel(product.rows, [&](auto* kernel, int bytes) {
        launch_kernel(kernel, bytes, OrderedArgs<Output>{args, product.scratch.data()});
      });
    }
  }

  /// One whose shared memory and blocks are those of all.
  template <typename Call>
  static void with_wgmma_kernel(std::int64_t rows, const Call& call) {
    const auto chosen = [&]<int kRows>() {
      if constexpr (kRows > kMostMmaRows && kRows <= Fragments::kMostRows) {
        call(packed_wgmma_kernel<T, Format, kRows, Output>,
             WgmmaStage<Fragments, kRows>::kSharedBytes + kRingAlignment);
      }
    };
    if (rows <= 32) {
      chosen.template operator()<32>();
    } else {
      chosen.template operator()<64>();
    }
  }

 private:
  template <typename Call>
  static void with_mma_kernel(std::int64_t rows, const Call& call) {
    const auto chosen = [&]<int kRows>() {
      if constexpr (kRows <= kMostMmaRows) {
        call(packed_mma_kernel<T, Format, kRows, Output>,
             PackedStage<Fragments, kRows>::kSharedBytes);
      }
    };
    if (rows <= 8) {
      chosen.template operator()<8>();
    } else if (rows <= 16) {
      chosen.template operator()<16>();
    } else {
      chosen.template operator()<32>();
    }
  }

  static void launch_order(const PackedProduct& product, int cols) {
    const int units = ordered_units(cols);
    const auto launch = [&]<int kRows>() {
      const int pieces = units * ordered_unit_bytes(kRows) / 16;
      launch_early(order_activations<Fragments, kRows>,
                   static_cast<unsigned>(pieces / kWideThreads), kWideThreads, 0, product.stream,
                   static_cast<const std::byte*>(product.a), static_cast<int>(product.rows), cols,
                   units, product.scratch.data());
    };
    if (product.rows <= 32) {
      launch.template operator()<32>();
    } else {
      launch.template operator()<64>();
    }
  }
};

}  // namespace zi
