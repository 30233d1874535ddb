#!/usr/bin/env python3
"""Runs upstream's conformance suite, unmodified, against a cluster of its own, and says what passed, by SIG.

Specs that upstream marks [Serial] or [Disruptive] run one at a time, the others in PARALLEL processes. Timeouts are
upstream's, nothing is retried, and a spec that was skipped or never ran has not passed. One report a SIG goes to OUT, so
that `--resume` goes on after the last complete SIG. Closes with `N passed, N failed`."""

import argparse
import os
import re
import signal
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]
import build  # noqa: E402
import catalog  # noqa: E402
import report  # noqa: E402
import specs  # noqa: E402
import suite  # noqa: E402

OUT = os.path.join(HERE, "..", "..", "target", "conformance")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isopod", help="the binary")
    parser.add_argument("--tools", help="where kubectl-1.37 is")
    parser.add_argument("--cache", help="where upstream's programs and the images are kept")
    parser.add_argument("--out", default=os.path.abspath(OUT))
    parser.add_argument("--sig", default="", help="these SIGs only (apps,node)")
    parser.add_argument("--focus", default="", help="a regular expression: specs whose name it matches")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--resume", action="store_true", help="keep the reports of SIGs that an earlier run completed")
    parser.add_argument("--ci", type=float, metavar="MINUTES", help="specs that pass, drawn by the commit, for about so long")
    parser.add_argument("--write-failing", action="store_true", help="rewrite failing.txt and durations.tsv from the reports")
    parser.add_argument("--write-docs", action="store_true", help="rewrite docs/conformance.md from the reports")
    parser.add_argument("--report-only", action="store_true", help="run nothing: read the reports in OUT")
    parser.add_argument("--check-ratchet", action="store_true", help="only compare failing.txt with the merge base's")
    args = parser.parse_args()
    # Upstream's programs run in directories of their own.
    args.out = os.path.abspath(args.out)
    return args


def wanted(args, names):
    """The specs that this run is about."""
    if args.ci:
        passing = [n for n in names if n not in specs.failing()]
        return specs.choose(passing, specs.commit(), args.ci * 60, args.parallel)
    sigs = {s if s.startswith("sig-") else f"sig-{s}" for s in args.sig.split(",") if s}
    chosen = [n for n in names if (not sigs or specs.sig(n) in sigs) and re.search(args.focus, n)]
    if not chosen:
        sys.exit("no conformance spec has such a name")
    return chosen


def ratchet():
    more = specs.check_ratchet()
    for name in more:
        print(f"failing.txt may only shrink; new: {name}")
    return not more


def batches(args, chosen):
    """What runs together: a SIG; in CI all at once, where a slow spec must not hold up the others."""
    return {"ci": chosen} if args.ci else report.group(chosen)


def run(args, upstream, chosen):
    """Runs batch by batch; what `--resume` finds complete is left out."""
    rows = catalog.table()
    missing = suite.images(upstream) - catalog.references(rows) - set(rows["not_conformance"])
    for name in sorted(missing):
        print(f"no source for the image {name}")
    work = batches(args, chosen)
    binary = report.binary_id(args.isopod)
    if args.resume:
        work = {t: names for t, names in work.items() if not report.complete(args.out, t, names, binary)}
    if not work:
        return
    os.makedirs(args.out, exist_ok=True)
    for title in work:
        report.forget(args.out, title)
    storage = catalog.storage(upstream, f"{args.cache}/conformance")
    with suite.Runner(args, upstream, storage) as runner:
        for title, names in work.items():
            start = time.monotonic()
            print(f"{title}: {len(names)} specs", flush=True)
            results = runner.run(title, names)
            took = time.monotonic() - start
            report.save(args.out, title, results, binary, took)
            print(f"{report.line(title, names, results)}   {took:.0f} s", flush=True)


def main():
    # Ended from outside, a run takes its cluster away all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    args = arguments()
    if args.check_ratchet:
        sys.exit(0 if ratchet() else 1)
    if os.geteuid() != 0 and not args.report_only:
        sys.exit("the conformance specs run containers: run them as root")
    upstream = f"{args.cache}/upstream/{build.VERSION}-e2e"
    if not args.report_only:
        build.build(upstream)
    names = specs.conformance(f"{upstream}/conformance.yaml")
    chosen = wanted(args, names)
    if not args.report_only:
        run(args, upstream, chosen)
    results = report.load(args.out, batches(args, chosen))
    print(report.table(chosen, results))
    known = specs.failing()
    surprises = [n for n in chosen if n not in known and report.state(results, n) != "passed"]
    for name in surprises:
        print(f"{report.state(results, name)}, and not in failing.txt: {name}\n    {report.message(results, name)}")
    for name in [n for n in chosen if n in known and report.state(results, n) == "passed"]:
        print(f"passed, to be taken out of failing.txt: {name}")
    if args.write_failing:
        report.write_failing(chosen, results)
    if args.write_docs:
        report.write_docs(names, results, args.parallel)
    states = [report.state(results, n) for n in chosen]
    print(f"{states.count('passed')} passed, {states.count('failed')} failed")
    sys.exit(1 if surprises or not states.count("passed") else 0)


if __name__ == "__main__":
    main()
