#!/usr/bin/env bash
# Every test: installs what is missing, builds, runs all tests, those that are not slow under the address and
# undefined-behaviour sanitizers, those in which threads meet under the thread sanitizer, and the fuzzers for half
# a minute each.
#   launch/test.sh [--quick]     --quick: without sanitizers and fuzzers
set -euo pipefail
cd "$(dirname "$0")/.."
quick=${1:-}

launch/install_packages.sh --tests
# Beside the first build: it waits for the network most of the time.
tests/reference_packages.sh build-reference &
reference_packages=$!
jobs=$(nproc)
if [ "$(id -u)" -eq 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

build() {  # PRESET [cmake flags]: configures and builds quietly, and says how long it took
  local preset=$1 start=$SECONDS
  shift
  cmake --preset "$preset" "$@" >/dev/null
  # Without the lines of ptxas on how slow unoptimized code will be.
  cmake --build --preset "$preset" --parallel "$jobs" -- --quiet | { grep -v '^ptxas info' || true; }
  echo "built $preset in $((SECONDS - start)) s"
}
check() {  # PRESET [ctest flags]
  local preset=$1 start=$SECONDS
  shift
  # A test that computes counts as two, and one that waits as one: tests/CMakeLists.txt.
  ctest --preset "$preset" --parallel $((2 * jobs)) "$@"
  echo "tested $preset in $((SECONDS - start)) s"
}

# Without a GPU the CUDA backend is compiled for one architecture, to see that it compiles: the tests that need a GPU
# are skipped.
flags=(-DZI_TESTS=ON -DZI_BENCHMARKS=ON -DZI_CUDA_UNOPTIMIZED=OFF -DCMAKE_UNITY_BUILD=OFF)
if ! nvidia-smi -L >/dev/null 2>&1; then
  export CUDAARCHS=90-real
  flags+=(-DZI_CUDA_UNOPTIMIZED=ON)
fi
# The files of a room as one take less than half the time that they take one by one, and hide an include that one of
# them lacks: --quick compiles file by file, as users do, and is to be run before a change lands.
[ "$quick" = --quick ] || flags+=(-DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=0)
build cpu "${flags[@]}"
wait "$reference_packages" || echo "tests that compare with reference packages will be skipped"
check cpu
if [ "$quick" != --quick ]; then
  build asan  # with the fuzzers
  check asan -LE 'slow|fuzz'
  build tsan
  check tsan -LE slow
  check asan -L fuzz  # side by side
fi
