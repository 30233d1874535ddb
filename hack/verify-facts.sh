#!/bin/sh
# The committed facts are what hack/facts, hack/cel and hack/yaml write from upstream's modules.
set -eu
cd "$(dirname "$0")/facts"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go run . -out "$tmp" >/dev/null
diff -r "$tmp" ../../pkg/schema/facts
cel=../../pkg/kinds/src/cel
cd ../cel
go run . -out "$tmp/cel" -cases "$cel/golden" >/dev/null
for file in check/functions.txt golden/answers.jsonl; do
  diff "$tmp/cel/$file" "$cel/$file"
done
yaml=../../pkg/schema/src/yaml/golden
cd ../yaml
go run . -texts $yaml/texts.jsonl | diff - $yaml/answers.jsonl
