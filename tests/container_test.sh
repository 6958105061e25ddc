#!/usr/bin/env bash
# Builds launch/Containerfile without a registry, on a Debian 12 that debootstrap makes, and runs what comes out. As
# root, with debootstrap and buildah (both are packages of Debian 12); it takes a quarter of an hour on two cores, and
# some GB in a folder that is removed at the end. Not a part of launch/test.sh: tests/README.md says when it was run.
#   tests/container_test.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
for program in debootstrap buildah; do
  command -v "$program" >/dev/null || {
    echo "$program is not installed" >&2
    exit 77
  }
done
folder=$(mktemp -d "${1:-/tmp}/zero-infer-container-XXXXXX")
storage=(buildah --root "$folder/storage" --runroot "$folder/run" --storage-driver vfs)
trap '"${storage[@]}" rm --all >/dev/null 2>&1; rm -rf "$folder"' EXIT
printf '{"default": [{"type": "insecureAcceptAnything"}]}' >"$folder/policy.json"
policy=(--signature-policy "$folder/policy.json")

debootstrap --variant=minbase bookworm "$folder/debian" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >/dev/null
empty=$("${storage[@]}" from "${policy[@]}" scratch)
"${storage[@]}" add "$empty" "$folder/debian" / >/dev/null
"${storage[@]}" commit "${policy[@]}" --quiet "$empty" localhost/debian:12 >/dev/null
rm -rf "$folder/debian"
echo "base: Debian 12 of debootstrap, in $SECONDS s"

# A chroot instead of namespaces: it works inside of containers, too.
"${storage[@]}" build "${policy[@]}" --isolation chroot --pull-never -f launch/Containerfile -t localhost/zero-infer \
  --build-arg BUILD_BASE=localhost/debian:12 --build-arg RUN_BASE=localhost/debian:12 .
echo "image: after $SECONDS s"

image=$("${storage[@]}" from "${policy[@]}" --pull-never localhost/zero-infer)
in_image() { "${storage[@]}" run --isolation chroot "$image" -- "$@"; }
in_image zero-infer --version
demo=(zero-infer --config config/demo.yaml --quiet)
one=$(in_image "${demo[@]}")
two=$(in_image mpirun --oversubscribe -np 2 "${demo[@]}")
in_image sh -c '! command -v g++ && ! command -v cmake' >/dev/null || {
  echo "the image holds what only building needs" >&2
  exit 1
}
texts() { sed 's/, rank [0-9]*]/]/' <<<"$1" | sort; }
if [ -z "$one" ] || [ "$(texts "$one")" != "$(texts "$two")" ]; then
  printf 'one rank and two ranks differ:\n%s\n--\n%s\n' "$one" "$two" >&2
  exit 1
fi
du -sh "$folder/storage" | sed 's/\t.*/ in all, of base, build and image/'
echo "container: one and two ranks answer alike, after $SECONDS s"
