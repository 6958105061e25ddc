#!/usr/bin/env bash
# The packages that hold the shared libraries of a program, one a line (Debian, Ubuntu): what it needs where it runs.
#   launch/runtime_packages.sh build/zero-infer
set -euo pipefail

libraries=$(ldd "$1" | awk '$3 ~ "^/" {print $3} / => not found/ {print $1 " is not there" >"/dev/stderr"; bad = 1}
                            END {exit bad}')
for library in $libraries; do
  # A merged /usr has two names for a file, and dpkg knows one of them.
  file=$(readlink -f "$library")
  dpkg-query --search "*/$(basename "$file")" | awk -v file="$file" -F ': ' '
    {name = $2; sub("^/usr", "", name); wanted = file; sub("^/usr", "", wanted)}
    name == wanted {split($1, packages, ", "); sub(":.*", "", packages[1]); print packages[1]}'
done | sort -u
