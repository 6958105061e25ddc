#!/usr/bin/env bash
# Holds the rooms apart (see include/zero_infer/README.md): which room may include which, and in which files the headers
# of CUDA, MPI, NCCL, liburing, yaml-cpp and oneDNN may stand.
#   tests/layers_test.sh ROOT
set -euo pipefail
cd "$1"
failed=0

# No public header names a vendor type.
vendor='<(mpi|cuda|cublas|nccl|liburing|yaml-cpp|oneapi|oniguruma|nlohmann|CLI|spdlog|fmt|hwloc|xxhash)'
if grep -nE "#include $vendor" include/zero_infer/*.h; then
  echo "a vendor header stands in a public header" >&2
  failed=1
fi

# only HEADER-PATTERN PLACE..: the header is included below those places alone (and in tests and benchmarks).
only() {
  local pattern=$1 found
  shift
  found=$(grep -rlE "#include [<\"]$pattern" src offload launch include || true)
  for place in "$@"; do found=$(grep -v "^$place" <<<"$found" || true); done
  if [ -n "$found" ]; then
    echo "$pattern may stand in $* alone, not in: $found" >&2
    failed=1
  fi
}
only 'mpi\.h' src/comm/
only '(cuda|cublas|nvtx)' src/backend/cuda/
only 'nccl' src/comm/
only 'liburing' offload/io_uring_reader
only 'yaml-cpp' src/config/
only 'oneapi' src/backend/cpu/
only 'hwloc' src/backend/

# Whether a build has CUDA is known where the runtime is chosen, and nowhere else.
if grep -rl 'ZI_HAVE_CUDA' src offload launch include --include='*.cc' --include='*.h' | grep -v '^src/engine/backend_choice.cc$'; then
  echo "ZI_HAVE_CUDA may stand in src/engine/backend_choice.cc alone" >&2
  failed=1
fi

# never ROOM PATTERN: nothing in ROOM includes a header of that kind.
never() {
  if grep -rnE "#include \"($2)" "$1"; then
    echo "$1 must not include $2" >&2
    failed=1
  fi
}
never src/base '(config|checkpoint|partition|comm|backend|model|text|engine|plan|measure|offload|launch)/'
for room in config checkpoint partition text; do
  never "src/$room" '(comm|backend|model|engine|plan|measure|offload|launch)/|zero_infer/(device|world|communicator|model)\.h'
done
never src/model '(comm|backend|engine|plan|measure|offload|launch|checkpoint)/|zero_infer/(world|communicator|weight_source|checkpoint)\.h'
never offload '(model|engine|plan|measure|launch|text|config)/|zero_infer/(model|world|tokenizer|prompt|run_config)\.h'
never src/backend '(model|engine|plan|measure|offload|launch|comm)/'
never src/comm '(model|engine|plan|measure|offload|launch)/'
never src/engine '(plan|measure|launch)/'
never src/plan '(measure|launch)/'
never src/measure 'launch/'
exit $failed
