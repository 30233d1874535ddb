#!/usr/bin/env bash
# Installs Debian packages that are missing: `deps.sh build` what a build needs, `deps.sh test` also what the tests need,
# `deps.sh conformance` also what makes the images of the conformance suite, `deps.sh bench-store` also what the datastore is
# compared with, `deps.sh fuzz` also what compiles libFuzzer.
set -euo pipefail
build=(gcc make pkg-config libseccomp-dev)
test=(busybox-static docker-registry etcd-client etcd-server openssl libprotobuf-dev protobuf-compiler iproute2 nftables conntrack postgresql python3 python3-pip curl git procps)
conformance=(bzip2 libc6-dev mmdebstrap)
bench_store=(postgresql util-linux)
fuzz=(g++)
want=("${build[@]}")
case "${1:-build}" in
  test) want+=("${test[@]}") ;;
  conformance) want+=("${test[@]}" "${conformance[@]}") ;;
  bench-store) want+=("${test[@]}" "${bench_store[@]}") ;;
  fuzz) want+=("${fuzz[@]}") ;;
esac
missing=()
for p in "${want[@]}"; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "missing packages: ${missing[*]}; install them with: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
apt-get update -q >/dev/null
# Services that packages bring are not started: the tests start their own, on ports of their own.
printf '#!/bin/sh\nexit 101\n' > /tmp/policy-rc.d.$$ && chmod +x /tmp/policy-rc.d.$$
guard=/usr/sbin/policy-rc.d
[ -e $guard ] || { mv /tmp/policy-rc.d.$$ $guard; trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }
rm -f /tmp/policy-rc.d.$$
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
