#!/bin/sh
# The committed schema facts are what hack/facts writes from upstream's modules.
set -eu
cd "$(dirname "$0")/facts"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go run . -out "$tmp" >/dev/null
diff -r "$tmp" ../../pkg/schema/facts
