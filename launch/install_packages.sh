#!/usr/bin/env bash
# Installs what zero-infer is built from, where it is missing (Debian 12, Ubuntu 24.04).
#   launch/install_packages.sh [--tests]     --tests: what the tests need, too
set -euo pipefail

# Whether the first process starts services: not in a container.
has_init() {
  local first
  read -r first </proc/1/comm || return 0  # not to be seen
  case $first in systemd | init | openrc-init | runit | runit-init | s6-svscan | dinit) return 0 ;; esac
  return 1
}

packages=(g++ cmake ninja-build pkg-config openmpi-bin libopenmpi-dev liburing-dev libyaml-cpp-dev
  libdnnl-dev libonig-dev nlohmann-json3-dev libcli11-dev libspdlog-dev libfmt-dev libxxhash-dev
  libhwloc-dev libicu-dev libboost-dev libssl-dev)
if [ "${1:-}" = --tests ]; then
  packages+=(libgtest-dev libgmock-dev libbenchmark-dev clang libclang-rt-dev llvm lld libomp-dev python3 python3-venv
    iproute2 binutils)
  # Slurm's daemons, for a test that starts them itself; not where they would be started as services, too.
  slurm=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge)
  if ! has_init; then
    packages+=("${slurm[@]}")
  elif ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    echo "packages: without ${slurm[*]}, which would start services here; the test hosts_slurm needs them"
  fi
  # Ubuntu has the sanitizers' runtime under the compiler's version only.
  apt-cache show libclang-rt-dev >/dev/null 2>&1 || packages=("${packages[@]/libclang-rt-dev/}")
fi

missing=()
for package in "${packages[@]}"; do
  [ -n "$package" ] || continue
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "packages: all there"
  exit 0
fi
command -v apt-get >/dev/null || {
  echo "packages: no apt-get here; install the counterparts of: ${missing[*]}" >&2
  exit 1
}
sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "packages: run as root or install sudo, or have these installed: ${missing[*]}" >&2
    exit 1
  }
  sudo=(sudo)
fi
echo "packages: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d  # says whether a package may start its daemon
if ! has_init && [ ! -e $policy ]; then
  remove_policy() {
    "${sudo[@]}" rm -f $policy || echo "packages: remove $policy, which keeps services from starting" >&2
  }
  trap remove_policy EXIT
  printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" install -m 755 /dev/stdin $policy
fi
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
