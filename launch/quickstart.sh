#!/usr/bin/env bash
# From a fresh clone to text: installs what is missing, builds, and runs the bundled model on two ranks.
#   launch/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."

launch/install_packages.sh
mkdir -p build
cmake --preset cpu -DZI_TESTS=OFF -DZI_BENCHMARKS=OFF >build/configure.log 2>&1 || {
  cat build/configure.log >&2
  exit 1
}
grep -o 'CUDA backend: .*' build/configure.log
echo "building in build/ (Release, $(nproc) jobs)"
cmake --build build --parallel "$(nproc)" -- --quiet

if [ "$(id -u)" -eq 0 ]; then  # Open MPI asks root twice whether it means it
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
oversubscribe=()
[ "$(nproc)" -ge 2 ] || oversubscribe=(--oversubscribe)
set -x
mpirun -np 2 "${oversubscribe[@]}" build/zero-infer --config config/demo.yaml
