"""Results of specs by SIG: kept as one JSON file a SIG, shown as a table, written into failing.txt and the docs."""

import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess

import specs

HERE = os.path.dirname(os.path.abspath(__file__))
DOCS = os.path.join(HERE, "..", "..", "docs", "conformance.md")


def group(names):
    """By SIG, in the order of names' first appearance."""
    by_sig = {}
    for name in names:
        by_sig.setdefault(specs.sig(name), []).append(name)
    return by_sig


def binary_id(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def save(out, sig, results, binary, seconds):
    kept = {"binary": binary, "commit": specs.commit(), "seconds": round(seconds), "results": results}
    with open(f"{out}/{sig}.json.part", "w") as f:
        json.dump(kept, f, indent=1)
    os.rename(f"{out}/{sig}.json.part", f"{out}/{sig}.json")


def forget(out, sig):
    """Takes away what an earlier run left of this SIG."""
    if os.path.exists(f"{out}/{sig}.json"):
        os.remove(f"{out}/{sig}.json")
    for stage in ("parallel", "serial"):
        shutil.rmtree(f"{out}/{sig}-{stage}", ignore_errors=True)


def _saved(out, sig):
    path = f"{out}/{sig}.json"
    if not os.path.exists(path):
        return {"binary": "", "commit": "", "seconds": 0, "results": {}}
    with open(path) as f:
        return json.load(f)


def complete(out, sig, names, binary):
    """Did a run with this binary give each of these specs a result?"""
    kept = _saved(out, sig)
    return kept["binary"] == binary and set(names) <= set(kept["results"])


def load(out, titles):
    results = {}
    for title in titles:
        results |= _saved(out, title)["results"]
    return results


def state(results, name):
    return results[name]["state"] if name in results else "not run"


def message(results, name):
    """The first lines of the failure, on one line."""
    text = results.get(name, {}).get("message", "")
    text = re.sub(r"\s+", " ", text).strip()
    return text[:300]


def _counts(names, results):
    states = [state(results, n) for n in names]
    return [states.count(s) for s in ("passed", "failed", "skipped", "not run")]


def line(sig, names, results):
    passed, failed, skipped, never = _counts(names, results)
    return f"{sig:22}{passed:8}{failed:8}{skipped:8}{never:8}{len(names):8}"


def table(names, results):
    by_sig = group(names)
    rows = [f"{'':22}{'passed':>8}{'failed':>8}{'skipped':>8}{'not run':>8}{'of':>8}"]
    rows += [line(sig, by_sig[sig], results) for sig in sorted(by_sig)]
    return "\n".join([*rows, line("all", names, results)])


def write_failing(chosen, results):
    """What passed leaves the list, what did not enters it with the reason known before, or what was seen."""
    known, took = specs.failing(), specs.durations()
    for name in chosen:
        if state(results, name) == "passed":
            known.pop(name, None)
            took[name] = results[name]["seconds"]
        else:
            took.pop(name, None)
            known.setdefault(name, message(results, name)[:110].replace(" # ", " ") or state(results, name))
    specs.write_failing(known)
    specs.write_durations(took)


def write_docs(names, results, parallel):
    by_sig = group(names)
    passed = _counts(names, results)[0]
    kernel = os.uname().release.split("-")[0]
    rows = []
    for sig in [*sorted(by_sig), "all"]:
        of = by_sig.get(sig, names)
        rows.append("| " + " | ".join([sig, *map(str, _counts(of, results)), str(len(of))]) + " |")
    commit = subprocess.run(["git", "-C", HERE, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    with open(DOCS, "w") as f:
        f.write(f"""# Conformance

{passed} of the {len(names)} specs of Kubernetes v1.37's conformance suite pass. The suite is upstream's `e2e.test`, built
unmodified from the v1.37.2 modules; a skipped spec is not a passed one, and nothing is retried.

Measured {datetime.date.today().isoformat()} at commit {commit.stdout.strip()}: one node, amd64, Linux {kernel},
{os.cpu_count()} cores, {parallel} specs at a time. `make conformance` repeats it (root, Go; some 20 minutes to build the suite once);
`SIG=apps`, `FOCUS=regular-expression`, `PARALLEL=4` narrow it. What does not pass stands in
[e2e/conformance/failing.txt](../e2e/conformance/failing.txt) with the reason, and may only become less; how the images were made
and how they differ from upstream's in [e2e/conformance/images.toml](../e2e/conformance/images.toml).

| SIG | passed | failed | skipped | not run | of |
| --- | --: | --: | --: | --: | --: |
""")
        f.write("\n".join(rows) + "\n")
