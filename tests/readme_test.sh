#!/usr/bin/env bash
# The README's list of flags is what the program prints.
#   tests/readme_test.sh ROOT BINARY
set -euo pipefail
diff <(awk '/^Runs language models/ {on = 1} /^```$/ {on = 0} on' "$1/README.md") <("$2" --help) || {
  echo "README.md, section Flags, differs from zero-infer --help" >&2
  exit 1
}
