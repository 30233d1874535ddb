#!/usr/bin/env python3
"""Says what a binary's bytes are spent on: its sections, then code and constants by crate, then the functions of which there
are many copies. The binary needs its symbols, which a release build leaves out:

    CARGO_PROFILE_RELEASE_STRIP=none cargo build --release -p isopod
    hack/size.py target/.../release/isopod

A generic function counts to the crate that wrote it; its copies for different types are told apart by the symbol's hash
alone, so they show as one name with a count."""

import argparse
import collections
import re
import subprocess

HASH = re.compile(r"(::h[0-9a-f]{16}|\.llvm\.\d+|\.cold(\.\d+)?|\.\d+)+$")
IMPL = re.compile(r"^<+(?:&|\*|mut |const |dyn |\[)*(?:.*? as )?")
NATIVE = [
    ("aws-lc", re.compile(r"^(aws_lc_|bn_|ec_|p\d+_|ecp_|sha\d+_|L?p(256|384|521)_|curve25519|edwards25519|ml_(kem|dsa)|EVP_|RSA_|EC_|x509|asn1|k[A-Z])")),
    ("sqlite", re.compile(r"^(sqlite3|vdbe|fts|pager|btree|wal)", re.IGNORECASE)),
    ("jemalloc", re.compile(r"^_?(rjem_|je_)")),
    ("zstd", re.compile(r"^(ZSTD|HUF|FSE|XXH|HIST)")),
    ("seccomp", re.compile(r"^(seccomp|db_|gen_bpf|arch_|syscall_|_?bpf|x86_64_|aarch64_)")),
]
CODE, DATA = set("tTwWvViu"), set("rRdDbB")


def crate_of(name):
    """The crate whose path the symbol begins with; of an implementation, that of the type, or of the trait for foreign types."""
    if "::" not in name:
        return next((crate for crate, pattern in NATIVE if pattern.match(name)), "C and assembler")
    paths = re.findall(r"[A-Za-z_][A-Za-z0-9_]*(?=::)", name)
    first = [p for p in paths if not p[0].isupper()]
    return first[0] if first else "?"


def bare(name):
    """The name without hash and type arguments."""
    name = HASH.sub("", name)
    depth, out = 0, []
    for i, c in enumerate(name):
        # `<T as Trait>::f` begins with a bracket that is no list of arguments; `->` is no bracket.
        opens = c == "<" and i > 0 and name[i - 1] not in "<&( "
        if depth == 0 and opens:
            depth = 1
        elif depth:
            depth += (c == "<") - (c == ">" and name[i - 1] != "-")
        else:
            out.append(c)
    return "".join(out)


def symbols(binary):
    lines = subprocess.run(["nm", "-S", "-C", binary], check=True, capture_output=True, text=True).stdout.splitlines()
    seen = set()
    for line in lines:
        fields = line.split(" ", 3)
        # Without a size: a label of assembler. Twice at one address: another name of the same function.
        if len(fields) < 4 or len(fields[1]) != 16 or fields[0] in seen:
            continue
        seen.add(fields[0])
        yield int(fields[1], 16), fields[2], fields[3]


def sections(binary):
    lines = subprocess.run(["readelf", "-SW", binary], check=True, capture_output=True, text=True).stdout.splitlines()
    for line in lines:
        m = re.match(r"\s*\[\s*\d+\]\s+(\S+)\s+(\S+)\s+\S+\s+\S+\s+([0-9a-f]+)", line)
        if m and m.group(2) != "NOBITS":
            yield m.group(1), int(m.group(3), 16)


def table(title, rows):
    print(f"\n{title}")
    for row in rows:
        print("  " + row)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--lines", type=int, default=40, help="lines of each table")
    parser.add_argument("--crate", help="the largest functions of this crate, besides")
    options = parser.parse_args()

    parts = sorted(sections(options.binary), key=lambda s: -s[1])
    table("sections, KiB", [f"{size >> 10:8,}  {name}" for name, size in parts[:12]])
    code, data, functions = collections.Counter(), collections.Counter(), collections.Counter()
    copies, bytes_of = collections.Counter(), collections.Counter()
    within = collections.Counter()
    for size, kind, name in symbols(options.binary):
        crate = crate_of(name)
        if kind in CODE:
            code[crate] += size
            functions[crate] += 1
            copies[bare(name)] += 1
            bytes_of[bare(name)] += size
            if crate == options.crate:
                within[bare(name)] += size
        elif kind in DATA:
            data[crate] += size
    total = sum(code.values())
    table(
        f"by crate, KiB of code ({total >> 10:,} in all), functions, KiB of named data",
        [f"{s >> 10:8,} {functions[c]:7,} {data[c] >> 10:7,}  {c}" for c, s in code.most_common(options.lines)],
    )
    table(
        "by function, KiB of all copies, copies",
        [f"{s >> 10:8,} {copies[f]:7,}  {f[:150]}" for f, s in bytes_of.most_common(options.lines)],
    )
    if options.crate:
        rows = [f"{s >> 10:8,} {copies[f]:7,}  {f[:150]}" for f, s in within.most_common(options.lines)]
        table(f"in {options.crate}", rows)


if __name__ == "__main__":
    main()
