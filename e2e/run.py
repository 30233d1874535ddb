#!/usr/bin/env python3
"""Runs the end-to-end tests: every function `test_*` of every module in `tests/`.

A test takes a `Cluster` that runs (shared by the module), or, where it declares `fresh`, a function that makes one.
Closes with `N passed, N failed`."""

import argparse
import importlib
import inspect
import os
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "tests")]
from harness import Cluster  # noqa: E402


def started(cluster):
    """A cluster that does not start is taken away again."""
    try:
        return cluster.start()
    except BaseException:
        cluster.close()
        raise


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--isopod", required=True)
    parser.add_argument("--tools", required=True)
    parser.add_argument("--app", help="the test program; default: beside the binary")
    parser.add_argument("--only", default="", help="run tests whose name holds this")
    args = parser.parse_args()
    app = args.app or os.path.join(os.path.dirname(args.isopod), "isopod-e2e-app")
    if os.geteuid() != 0:
        sys.exit("the end-to-end tests run containers: run them as root")

    def make(**kw):
        return Cluster(args.isopod, args.tools, app, **kw)

    passed, failed = [], []
    for file in sorted(os.listdir(os.path.join(HERE, "tests"))):
        if not (file.startswith("test_") and file.endswith(".py")):
            continue
        module = importlib.import_module(file[:-3])
        tests = [(f"{file[5:-3]}.{n[5:]}", f) for n, f in vars(module).items() if n.startswith("test_")]
        tests = [(n, f) for n, f in tests if args.only in n]
        shared = None
        try:
            for name, test in tests:
                start = time.monotonic()
                try:
                    if "fresh" in inspect.signature(test).parameters:
                        test(make)
                    else:
                        shared = shared or started(make())
                        test(shared)
                    passed.append(name)
                    print(f"ok      {name} ({time.monotonic() - start:.1f} s)", flush=True)
                except KeyboardInterrupt:
                    raise
                except BaseException:
                    failed.append(name)
                    print(f"FAILED  {name} ({time.monotonic() - start:.1f} s)\n{traceback.format_exc()}", flush=True)
        finally:
            if shared:
                try:
                    shared.close()
                except Exception:
                    failed.append(f"{file[5:-3]}: closing the cluster")
                    traceback.print_exc()
    for name in failed:
        print(f"failed: {name}")
    print(f"{len(passed)} passed, {len(failed)} failed")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
