#!/usr/bin/env bash
# No function or variable of namespace zi is defined by two object files. A linker finds that only where a program
# takes both from their libraries, and which ones it takes changes when files are compiled together.
#   tests/one_definition_test.sh NM LIST     LIST: a file with the paths of object files, one a line
set -euo pipefail
nm=$1 list=$2

# nm's lines are "FILE:ADDRESS TYPE NAME". T, D, B and R are code and data that may be defined once; templates and
# inline functions are W or V. 2zi is how the linker's names spell the namespace.
definitions=$(xargs -d '\n' "$nm" -A --defined-only --extern-only <"$list" |
  awk '$2 ~ /^[TDBR]$/ && $3 ~ /2zi/ {print $3, $1}')
[ -n "$definitions" ] || { echo "$list: no object file defines anything" >&2; exit 1; }
twice=$(cut -d' ' -f1 <<<"$definitions" | sort | uniq -d)
for name in $twice; do
  echo "$(c++filt "$name") is defined in"
  grep "^$name " <<<"$definitions" | sed -E 's#^[^ ]+ (.*):[^:]*$#  \1#'
done >&2
[ -z "$twice" ]
