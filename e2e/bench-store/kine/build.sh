#!/bin/sh
# Builds kine once for each set of pinned modules, below the directory given, and prints where it is. With cgo and the build
# tags of its own releases: it is measured as its users run it.
set -eu
command -v go >/dev/null || { echo "the benchmark needs Go, to build kine" >&2; exit 1; }
command -v "${CC:-gcc}" >/dev/null || { echo "the benchmark needs a C compiler, to build kine with SQLite" >&2; exit 1; }
cache=$1
cd "$(dirname "$0")"
version=$(go list -m -f '{{.Version}}' github.com/k3s-io/kine)
dir=$cache/kine-$version-$(cat go.mod go.sum build.sh | sha256sum | cut -c1-12)
if [ ! -x "$dir/kine" ]; then
	echo "building kine $version; the first time this takes some minutes" >&2
	tags=sqlite_unlock_notify,sqlite_vtable,sqlite_stat4,sqlite_preupdate_hook,sqlite_math_functions,sqlite_dbstat,sqlite_column_metadata
	mkdir -p "$dir"
	# Renamed into place when whole: an interrupted build is not taken for a finished one.
	CGO_ENABLED=1 CGO_CFLAGS="-O2 -DSQLITE_DEFAULT_MEMSTATUS=0 -DSQLITE_THREADSAFE=1 -DSQLITE_ENABLE_STAT4" \
		go build -ldflags "-X github.com/k3s-io/kine/pkg/version.Version=$version" -tags "$tags" -o "$dir/kine.new" \
		github.com/k3s-io/kine
	mv "$dir/kine.new" "$dir/kine"
fi
echo "$dir"
