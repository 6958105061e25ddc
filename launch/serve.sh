#!/usr/bin/env bash
# Starts a server on all GPUs of this host, a rank each, or on the CPU where there is none:
#   launch/serve.sh --model /models/bloom-7b1 --port 8000 [more flags: zero-infer serve --help]
# RANKS names another number of ranks; ZERO_INFER and MPIRUN_ARGS are those of run_local.sh.
# After SIGTERM or Ctrl-C requests that run can end (--drain-seconds); a second one ends the server at once.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

gpus() {  # those that the scheduler or the user shows, else all
  if [[ -n ${CUDA_VISIBLE_DEVICES+shown} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
  else
    echo 0
  fi
}

ranks=${RANKS:-$(gpus)}
[[ $ranks =~ ^[0-9]+$ ]] || {
  echo "serve.sh: RANKS is \"$ranks\", wanted a number" >&2
  exit 2
}
if ((ranks <= 1)); then
  exec "${ZERO_INFER:-$here/../build/zero-infer}" serve "$@"
fi

# mpirun that gets SIGTERM kills its ranks a second later, but SIGUSR1 it hands on, and to a server that is the same. In
# a session of its own it does not get the terminal's Ctrl-C either.
setsid "$here/run_local.sh" "$ranks" serve "$@" &
mpirun=$!
trap 'kill -USR1 "$mpirun" 2>/dev/null || true' TERM INT
code=0
while true; do
  wait "$mpirun" && code=0 || code=$?
  kill -0 "$mpirun" 2>/dev/null || break  # else a signal ended the wait, not the job
done
exit "$code"
