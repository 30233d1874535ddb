#!/bin/sh
# A compiler for RUSTC_WORKSPACE_WRAPPER: our own crates tell libFuzzer which edges they take and what they compare. The passes are
# LLVM's and need no nightly compiler; programs that run while others are built are left as they are. The C library is loaded at the
# start, because libFuzzer looks there for the functions that it watches: where two flags speak of that, `+` counts, so it is replaced.
for argument; do
  case "$argument" in build_script_*) exec "$@" ;; esac
done
for argument; do
  shift
  case "$argument" in target-feature=+crt-static) argument=target-feature=-crt-static ;; esac
  set -- "$@" "$argument"
done
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-trace-compares \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
