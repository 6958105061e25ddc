#!/usr/bin/env bash
# Runs a job that ends badly: its exit status must be one of some, and what it says must hold a sentence (a pattern of
# grep -E; empty: any).
#   tests/world_ends_test.sh STATUS[,STATUS..] SENTENCE COMMAND..
set -u
statuses=$1 sentence=$2
shift 2
said=$(mktemp)
trap 'rm -f "$said"' EXIT
code=0
"$@" >"$said" 2>&1 || code=$?  # a file: who holds the end of a pipe keeps its reader waiting
cat "$said"
if [[ ,$statuses, != *,$code,* ]]; then
  echo "the status is $code, not $statuses" >&2
  exit 1
fi
if [[ -n $sentence ]] && ! grep -qE "$sentence" "$said"; then
  echo "it does not say: $sentence" >&2
  exit 1
fi
