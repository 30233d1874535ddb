#!/usr/bin/env bash
# fuzz.sh PROGRAM DIRECTORY MINUTES [TARGET...]: looks for inputs that break a target, of each that is named or of all, one after
# another. What it learns is kept in DIRECTORY/corpus, what it finds in DIRECTORY/findings. With KEEP=1 the inputs that no smaller
# ones stand for are taken over into the committed corpus.
set -euo pipefail
program=$1 directory=$2 minutes=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(ls "$here/corpus")
# Bodies are as large as the largest here; time in seconds and memory in megabytes that no input may take.
limits=(-max_len=8192 -timeout=20 -rss_limit_mb=3000)
failed=()
for target in "${targets[@]}"; do
  export ISOPOD_FUZZ=$target
  own=$directory/corpus/$target
  mkdir -p "$own" "$directory/findings"
  dictionary=()
  [ -f "$here/dictionaries/$target" ] && dictionary=("-dict=$here/dictionaries/$target")
  if ! "$program" "${limits[@]}" "${dictionary[@]}" -max_total_time=$((minutes * 60)) -print_final_stats=1 \
    -artifact_prefix="$directory/findings/$target-" "$own" "$here/corpus/$target" >"$directory/$target.log" 2>&1; then
    failed+=("$target")
    tail -n 40 "$directory/$target.log"
  elif [ "${KEEP:-}" = 1 ]; then
    "$program" "${limits[@]}" -merge=1 "$here/corpus/$target" "$own" >>"$directory/$target.log" 2>&1
  fi
  echo "$target: $(grep -o 'Done [0-9]* runs in [0-9]* second' "$directory/$target.log" || echo found something)"
done
[ ${#failed[@]} -eq 0 ] || { echo "findings of ${failed[*]} in $directory/findings" >&2; exit 1; }
