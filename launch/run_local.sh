#!/usr/bin/env bash
# Runs zero-infer with N ranks on this host:
#   launch/run_local.sh 4 --config config/demo.yaml
# ZERO_INFER names another binary; MPIRUN_ARGS adds arguments for mpirun (split at spaces).
set -euo pipefail

usage() {
  echo "usage: launch/run_local.sh RANKS [zero-infer flags..]" >&2
  exit 2
}

[[ $# -ge 1 && "$1" =~ ^[1-9][0-9]*$ ]] || usage
ranks=$1
shift

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
binary=${ZERO_INFER:-$root/build/zero-infer}
if [[ ! -x $binary ]]; then
  echo "run_local.sh: no program at $binary; build it with launch/quickstart.sh, or name one in ZERO_INFER" >&2
  exit 1
fi
if ! command -v mpirun >/dev/null; then
  echo "run_local.sh: mpirun is not installed (Debian, Ubuntu: apt install openmpi-bin)" >&2
  exit 1
fi

# Open MPI refuses root unless it is told twice.
if [[ $(id -u) -eq 0 ]]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# Unbound: the ranks divide the cores among themselves. Open MPI counts cores, not hardware threads, of
# the CPUs that this process may use.
mpi_args=(--bind-to none)
threads=$(lscpu --parse=CPU | grep -vc '^#')
cores=$(lscpu --parse=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)
cores=$(($(nproc) * cores / threads))
if ((ranks > cores)); then
  mpi_args+=(--oversubscribe)
fi
read -r -a extra <<<"${MPIRUN_ARGS:-}"

exec mpirun -np "$ranks" "${mpi_args[@]}" ${extra[@]+"${extra[@]}"} "$binary" "$@"
