"""Upstream's list of conformance specs, what is known to fail here, and how long each takes.

`failing.txt` is a ratchet: it may only shrink. Its lines are `NAME # reason`, under a `# sig-…` line for each SIG."""

import hashlib
import os
import re
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
FAILING = os.path.join(HERE, "failing.txt")
DURATIONS = os.path.join(HERE, "durations.tsv")
UNKNOWN_SECONDS = 60.0


def conformance(path):
    """The names in upstream's conformance.yaml, in its order. Each is a scalar, plain or single-quoted, over some lines."""
    names, entries, lines = [], 0, open(path).read().split("\n")
    for i, line in enumerate(lines):
        entries += line.startswith("- testname:")
        if not line.startswith("  codename: "):
            continue
        parts = [line.removeprefix("  codename: ")]
        for more in lines[i + 1 :]:
            if not more.startswith("    "):
                break
            parts.append(more.strip())
        text = " ".join(parts)
        if text.startswith("'"):
            text = text[1:-1].replace("''", "'")
        elif text.startswith('"'):
            text = re.sub(r"\\(.)", r"\1", text[1:-1])
        names.append(text)
    if len(names) != entries or not names or not all(re.match(r"\[sig-", n) for n in names):
        raise ValueError(f"{path}: {entries} entries, {len(names)} names")
    return names


def sig(name):
    return re.match(r"\[(sig-[a-z-]+)\]", name).group(1)


def serial(name):
    return "[Serial]" in name or "[Disruptive]" in name


def focus(names):
    """A regular expression for ginkgo that selects exactly these specs."""
    # Go's syntax: what re.escape escapes beyond punctuation (space, quotes …) Go refuses.
    return "(" + "|".join(re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", n) for n in sorted(names)) + ")$"


def parse_failing(text):
    """Name to reason."""
    known = {}
    for line in text.splitlines():
        if line.startswith("[sig-"):
            name, _, reason = line.partition(" # ")
            known[name.strip()] = reason.strip()
    return known


def failing():
    return parse_failing(open(FAILING).read()) if os.path.exists(FAILING) else {}


def endless():
    """Specs that are known never to end, for want of what they wait for."""
    return {name for name, reason in failing().items() if reason.endswith("(never ends)")}


def write_failing(known):
    with open(FAILING, "w") as f:
        f.write("# Conformance specs of v1.37 that do not pass yet. This list may only shrink: run.py --check-ratchet.\n")
        last = None
        for name in sorted(known, key=lambda n: (sig(n), n)):
            if sig(name) != last:
                last = sig(name)
                f.write(f"\n# {last}\n")
            f.write(f"{name} # {known[name]}\n")


def _git(*args):
    done = subprocess.run(["git", "-C", HERE, *args], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def commit():
    return _git("rev-parse", "HEAD") or "unknown"


def merge_base():
    """The commit to compare with: where this branch left main; for main itself, its parent."""
    head = _git("rev-parse", "HEAD")
    for main in ("origin/main", "main"):
        base = _git("merge-base", "HEAD", main)
        if base and base != head:
            return base
    return _git("rev-parse", "HEAD~1")


def check_ratchet():
    """Names that failing.txt has and the base's has not. A base without the file allows all."""
    base = merge_base()
    old = base and _git("show", f"{base}:e2e/conformance/failing.txt")
    if not old:
        return []
    return sorted(set(failing()) - set(parse_failing(old)))


def durations():
    known = {}
    if os.path.exists(DURATIONS):
        for line in open(DURATIONS):
            if not line.startswith("#"):
                seconds, _, name = line.rstrip("\n").partition("\t")
                known[name] = float(seconds)
    return known


def write_durations(known):
    with open(DURATIONS, "w") as f:
        f.write("# Seconds that each passing spec took in the last full run.\n")
        for name in sorted(known, key=lambda n: (sig(n), n)):
            f.write(f"{known[name]:.1f}\t{name}\n")


def choose(names, seed, seconds, parallel):
    """Specs for a run of about `seconds`: a draw by `seed`, one of every SIG first. The same seed, the same draw."""
    took = durations()
    # One that takes most of the time alone is left to full runs.
    names = [n for n in names if took.get(n, UNKNOWN_SECONDS) <= seconds / 2]
    drawn = sorted(names, key=lambda n: hashlib.sha256(f"{seed} {n}".encode()).digest())
    first, seen = [], set()
    for name in drawn:
        if sig(name) not in seen and not serial(name):
            seen.add(sig(name))
            first.append(name)
    for name in drawn:
        if sig(name) not in seen:
            seen.add(sig(name))
            first.append(name)
    chosen, spent = [], 0.0
    for name in [*first, *[n for n in drawn if n not in set(first)]]:
        cost = took.get(name, UNKNOWN_SECONDS) / (1 if serial(name) else parallel)
        if len(chosen) < len(first) or spent + cost <= seconds:
            chosen.append(name)
            spent += cost
    return chosen
