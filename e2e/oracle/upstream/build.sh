#!/bin/sh
# Builds upstream's etcd and kube-apiserver once for each set of pinned modules, below the directory given, and prints
# where they are. Without cgo, so that the Go build cache is shared with whatever else builds these modules.
set -eu
command -v go >/dev/null || { echo "the oracle needs Go, to build upstream's programs" >&2; exit 1; }
cache=$1
cd "$(dirname "$0")"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
dir=$cache/$version-$(cat go.mod go.sum build.sh | sha256sum | cut -c1-12)
if [ ! -x "$dir/etcd" ] || [ ! -x "$dir/kube-apiserver" ]; then
	echo "building upstream's etcd and kube-apiserver $version; the first time this takes some minutes" >&2
	minor=${version#v1.}
	export CGO_ENABLED=0
	flags="-X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1"
	flags="$flags -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
	mkdir -p "$dir"
	# Renamed into place when whole: an interrupted build is not taken for a finished one.
	go build -o "$dir/etcd.new" go.etcd.io/etcd/server/v3
	mv "$dir/etcd.new" "$dir/etcd"
	go build -ldflags "$flags" -o "$dir/kube-apiserver.new" k8s.io/kubernetes/cmd/kube-apiserver
	mv "$dir/kube-apiserver.new" "$dir/kube-apiserver"
fi
echo "$dir"
