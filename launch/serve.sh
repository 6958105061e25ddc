#!/usr/bin/env bash
# Serves a model on this host, with a rank for each GPU, or with one on the CPU where there is none:
#   launch/serve.sh [RANKS] --model /models/bloom-7b1 --cpu-offload --port 8000
# RANKS, also as a variable, is another number. After the first SIGTERM, SIGHUP or Ctrl-C running requests end
# (--drain-seconds), after the second the server leaves at once. (mpirun by itself kills its ranks a second after either;
# SIGUSR1 it only hands on.) ZERO_INFER and MPIRUN_ARGS: see run_local.sh.
set -uo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

gpus() {  # those that the scheduler or the user shows, else all
  if [[ -n ${CUDA_VISIBLE_DEVICES+shown} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi -L 2>/dev/null | grep -c '^GPU'
  else
    echo 0
  fi
}

if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  RANKS=$1
  shift
fi
ranks=${RANKS:-$(gpus)}
if [[ ! $ranks =~ ^[0-9]+$ ]]; then
  echo "serve.sh: RANKS is \"$ranks\", wanted a number; usage: launch/serve.sh [RANKS] [flags of zero-infer serve..]" >&2
  exit 2
fi
if ((ranks <= 1)); then
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
trap hand_on INT TERM HUP
while :; do
  wait "$job"
  status=$?
  kill -0 "$job" 2>/dev/null || break  # else a signal ended the wait
done
exit "$status"
