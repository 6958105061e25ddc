#!/usr/bin/env bash
# Clients of the OpenAI API against a server, where tests/reference_packages.sh has installed them; exit code 77: not
# there.
#   tests/serve_clients_test.sh openai|lm-eval BINARY RANKS DIRECTORY
set -euo pipefail
client=$1 binary=$2 ranks=$3 directory=$4
python=$directory/$client/bin/python
if [ ! -e "$directory/$client/done-1" ]; then
  echo "$client is not there: run tests/reference_packages.sh build-reference"
  exit 77
fi
test=serve_clients_test.py
[ "$client" = openai ] || test=serve_lm_eval_test.py
exec "$python" "$(dirname "$0")/$test" "$binary" "$ranks"
