#!/usr/bin/env bash
# Serves a model with N ranks on this host:
#   launch/serve.sh 4 --model /models/bloom-7b1 --cpu-offload --port 8000
# After the first SIGTERM or Ctrl-C running requests end (--drain-seconds), after the second the server leaves at once.
# (mpirun by itself kills its ranks a second after either; SIGUSR1 it only hands on.) ZERO_INFER and MPIRUN_ARGS: see
# run_local.sh.
set -uo pipefail

if [[ $# -lt 1 || ! "$1" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/serve.sh RANKS [flags of zero-infer serve..]" >&2
  exit 2
fi
ranks=$1
shift
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
if ((ranks == 1)); then
  exec "${ZERO_INFER:-$here/../build/zero-infer}" serve "$@"
fi

# A process group of its own: Ctrl-C reaches this script alone.
set -m
"$here/run_local.sh" "$ranks" serve "$@" </dev/null &
job=$!
set +m
signals=0
hand_on() {
  signals=$((signals + 1))
  kill "-$([[ $signals -lt 3 ]] && echo USR1 || echo TERM)" "$job" 2>/dev/null
}
trap hand_on INT TERM
while :; do
  wait "$job"
  status=$?
  kill -0 "$job" 2>/dev/null || break  # else a signal ended the wait
done
exit "$status"
