#!/usr/bin/env bash
# Our Jinja against Python's, where tests/reference_packages.sh has installed it; exit code 77: not there.
#   tests/chat_reference_test.sh RENDER_CHAT DIRECTORY
set -euo pipefail
if [ ! -e "$2/done-3" ]; then
  echo "not there: run tests/reference_packages.sh build-reference"
  exit 77
fi
exec "$2/venv/bin/python" "$(dirname "$0")/chat_reference_test.py" "$1" "$2/llama.cpp/models/templates"
