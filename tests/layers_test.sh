#!/usr/bin/env bash
# Holds the rooms apart (see include/zero_infer/README.md): which room may include which, that nothing includes
# itself by a detour, and in which files the headers of CUDA, MPI, NCCL, liburing, yaml-cpp, Oniguruma, ICU, oneDNN,
# Boost and OpenSSL may stand.
#   tests/layers_test.sh ROOT
set -euo pipefail
cd "$1"
failed=0

# No public header names a vendor type.
vendor='<(mpi|cuda|cublas|nccl|liburing|yaml-cpp|oneapi|oniguruma|nlohmann|CLI|spdlog|fmt|hwloc|unicode|xxhash|boost|openssl)'
if grep -nE "#include $vendor" include/zero_infer/*.h; then
  echo "a public header includes a vendor header" >&2
  failed=1
fi

# A header is in include/zero_infer when rooms meet in it that do not include each other: some room uses it and
# includes nothing else from the room that implements it. What nothing there implements is an interface or a value of
# two rooms at least. A header that another one here includes counts as used with it. All others stand in their rooms.
room_of() { sed -E 's#^(src/)?##; s#/[^/]*$##' | sort -u; }
for header in include/zero_infer/*.h; do
  name=$(basename "$header")
  if grep -rq "#include \"zero_infer/$name\"" include; then continue; fi
  users=$(grep -rl "#include \"zero_infer/$name\"" src offload launch | room_of)
  owner=$(find src offload -name "${name%.h}.cc" | room_of)
  apart=0
  for room in $users; do
    if [ -z "$owner" ] || { [ "$room" != "$owner" ] && ! grep -rqs "#include \"$owner/" "src/$room" "$room"; }; then
      apart=$((apart + 1))
    fi
  done
  if [ "$apart" -lt "$([ -n "$owner" ] && echo 1 || echo 2)" ]; then
    echo "$header belongs in a room: it is implemented in ${owner:-no room}, and included by" $users >&2
    failed=1
  fi
done
if grep -rn '#include "' include | grep -v '"zero_infer/'; then
  echo "a public header needs the inside of a room" >&2
  failed=1
fi

# only HEADER-PATTERN PLACE..: the header is included below those places alone (and in tests and benchmarks).
only() {
  local pattern=$1 found
  shift
  found=$(grep -rlE "#include [<\"]$pattern" src offload launch include || true)
  for place in "$@"; do found=$(grep -v "^$place" <<<"$found" || true); done
  if [ -n "$found" ]; then
    echo "$pattern may be included in $* alone, not in: $found" >&2
    failed=1
  fi
}
only 'mpi\.h' src/comm/
only '(cuda|cublas|nvtx)' src/backend/cuda/
only 'nccl' src/comm/
only 'liburing' offload/io_uring_reader
only 'yaml-cpp' src/config/
only 'oniguruma' src/text/pattern.cc
only 'oneapi' src/backend/cpu/
only 'hwloc' src/backend/
only 'unicode/' src/chat/values/python_case.cc src/text/unicode.cc
only 'boost/' 'src/serve/http/[a-z_]*\.cc$'
only 'openssl/' src/serve/http/tls_context.cc src/comm/beat_proof.cc

# Whether a build has CUDA is known where the runtime is chosen, and nowhere else.
if grep -rl 'ZI_HAVE_CUDA' src offload launch include --include='*.cc' --include='*.h' | grep -v '^src/engine/backend_choice.cc$'; then
  echo "ZI_HAVE_CUDA may be used in src/engine/backend_choice.cc alone" >&2
  failed=1
fi

# One definition each: a name of two types in one program is undefined, and no linker says so.
types='^(class|struct|union|enum class) [A-Z][A-Za-z0-9]*( final)?( :[^;]*)? \{'
twice=$(find src include offload launch tests benchmarks \( -name '*.h' -o -name '*.cuh' \) -exec grep -hoE "$types" {} + |
  awk '{ print $1 == "enum" ? $3 : $2 }' | sort | uniq -d)
if [ -n "$twice" ]; then
  echo "types that two headers define:" $twice >&2
  failed=1
fi

# forwards CLASS FOLDER: forwarding_*.h there hands on every virtual function of a public interface.
forwards() {
  local header=include/zero_infer/$1.h forwarder=$2/forwarding_$1.h name
  for name in $(sed -n "/^class ${1^} {/,/^};/p" "$header" | grep -oE 'virtual [^~(]* [a-z_]+\(' | grep -oE '[a-z_]+\($'); do
    if ! grep -q "inner_->$name" "$forwarder"; then
      echo "$forwarder does not hand on ${name%(}" >&2
      failed=1
    fi
  done
}
forwards device tests
forwards ops src/engine

# never ROOM PATTERN: nothing in ROOM includes a header of that kind.
never() {
  if grep -rnE "#include \"($2)" "$1"; then
    echo "$1 must not include $2" >&2
    failed=1
  fi
}
never src/base '(config|checkpoint|partition|packing|comm|backend|model|text|engine|convert|plan|measure|offload|launch)/'
never src/chat '(config|checkpoint|partition|text)/'
never src/chat/values 'chat/(library|jinja|[a-z_]+\.h)'
never src/chat/library 'chat/(jinja|[a-z_]+\.h)'
never src/chat/jinja 'chat/[a-z_]+\.h'
for room in config checkpoint partition packing chat text; do
  never "src/$room" '(comm|backend|model|engine|convert|plan|measure|offload|launch)/|zero_infer/(device|world|communicator|model)\.h'
done
never src/model '(comm|backend|engine|convert|plan|measure|offload|launch|checkpoint)/|zero_infer/(world|communicator|weight_source|checkpoint)\.h'
never offload '(model|engine|convert|plan|measure|launch|text|config)/|zero_infer/(model|world|run_config)\.h'
never src/backend '(model|engine|convert|plan|measure|offload|launch|comm)/'
never src/comm '(model|engine|convert|plan|measure|offload|launch)/'
never src/engine '(convert|plan|measure|serve|launch)/'
never src/convert '(comm|backend|model|text|chat|plan|measure|serve|launch)/|zero_infer/(device|world|communicator)\.h'
never src/packing '(checkpoint|partition|config)/|zero_infer/(weight_source|partition_layout)\.h'
never src/plan '(convert|measure|serve|launch)/'
never src/measure '(convert|serve|launch)/'
never src/serve '(convert|plan|measure|launch|config)/'
never src/serve/http '(config|checkpoint|partition|packing|chat|text|backend|comm|model|offload|engine|convert|plan|measure|launch)/|serve/[a-z_]+\.h'

# arrows: a line `FROM TO` for each include of a file of ours by another. A header and its .cc are one, named by their
# path without the ending: the arrows are between their contents, whichever of the two holds them.
arrows() {
  grep -rE '^#include "' src offload launch --include='*.h' --include='*.cc' --include='*.cu' --include='*.cuh' |
    sed -E 's#^(src/)?([^:]*)/([^/:]*)\.(h|cc|cu|cuh):\#include "([^"]*)\.(h|cuh)".*#\2/\3 \2 \5#' |
    awk '{ to = $3 ~ "/" ? $3 : $2 "/" $3 } to !~ "^zero_infer/" && $1 != to { print $1, to }' | sort -u
}
# no_circle WHAT: fails when the arrows on stdin lead from somewhere back to it. Inside a room, too, files stand above
# each other: values and interfaces below those who use them, who makes or chooses them above.
no_circle() {
  local circle
  if ! circle=$(tsort 2>&1 >/dev/null); then
    echo "$1 that include each other in a circle:" >&2
    sed 's#^tsort: #  #' <<<"$circle" >&2
    failed=1
  fi
}
if [ "$(arrows | wc -l)" -lt 100 ]; then
  echo "the includes were not found" >&2
  failed=1
fi
no_circle files < <(arrows)
no_circle rooms < <(arrows | sed -E 's#/[^/ ]+( |$)#\1#g' | awk '$1 != $2')
exit $failed
