#!/usr/bin/env bash
# The pages say what the program says, and name nothing that is not there.
#   tests/readme_test.sh ROOT BINARY
set -euo pipefail
cd "$1"
binary=$2
failed=0
check() {  # WHAT FINDINGS: findings are faults
  [ -z "$2" ] && return
  printf '%s:\n%s\n' "$1" "$2" >&2
  failed=1
}
block() {  # PAGE START: the fenced block of which the first line begins with START
  awk -v start="$2" '/^```/ {on = 0} index($0, start) == 1 {on = 1} on' "$1"
}
pages=$(find . -name README.md -not -path './build*')

check "config/README.md differs from zero-infer --help" \
  "$(diff <(block config/README.md 'Runs language models') <("$binary" --help))"

# The first page is an introduction: short, in lines that a terminal shows whole. Only tables and commands are wider.
lines=$(wc -l <README.md)
check "README.md is too long; move details to the README.md of a room" \
  "$([ "$lines" -le 250 ] || echo "$lines lines, 250 are the most")"
check "lines of more than 120 columns" "$(for page in $pages; do
  awk '/^```/ {code = !code} /^<!-- / {made = /report:/}
       !code && !made && !/^\|/ && length > 120 {print FILENAME ":" FNR ": " length}' "$page"
done)"

# The plan of the first page is what its command prints.
plan=$(grep -oE 'zero-infer plan .*--gpus-like h100 .*' README.md | cut -d ' ' -f 2-)
check "README.md shows lines that \`zero-infer $plan\` does not print" \
  "$(block README.md '  block shards, device' | grep -vxF -f <("$binary" $plan) || true)"

# Links to files, from the folder of the page.
check "links to what is not there" "$(for page in $pages; do
  grep -oE '\]\([^)# ]+' "$page" | cut -c 3- | while IFS= read -r link; do
    [[ $link == *://* || -e $(dirname "$page")/$link ]] || echo "$page: $link"
  done || true
done)"

# Tests that pages name, as `Suite.Name`.
check "tests that do not exist" "$(for page in $pages; do
  grep -oE '`[A-Z][A-Za-z]+\.[A-Z][A-Za-z0-9]{9,}`' "$page" | tr -d '`' | while IFS=. read -r suite name; do
    grep -qE "^TEST(_F|_P)?\($suite, $name\)" tests/*.cc || echo "$page: $suite.$name"
  done || true
done)"
exit $failed
