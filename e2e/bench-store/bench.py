#!/usr/bin/env python3
"""`make bench-store`: `isopod datastore` beside etcd and kine, one load generator for all, all equally durable.

The servers have one core, the load another. Every figure is taken from each system in turn, round after round, and the table
holds the medians; ratios are medians of the rounds' ratios, above 1 where Isopod on the same database is better (etcd's are
beside Isopod on SQLite). Timings are those of one machine on
one day: compare columns of one run only. What each command measures is said in docs/benchmarks.md."""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from servers import SYSTEMS, Failure, run  # noqa: E402

CLIENTS = (1, 16, 64, 256)
# A list is 10 MB: more of them at once measure the memory of the machine.
LIST_CLIENTS = (1, 16)


def disk(dir, seconds=2):
    """Syncs a second of this disk: of 4 KiB written over what is there, and at the end of a growing file."""
    rates = {}
    block = os.urandom(4096)
    for label, size in (("overwrite", 64 << 20), ("append", 0)):
        path = f"{dir}/disk"
        with open(path, "wb", buffering=0) as f:
            if size:
                f.write(os.urandom(size))
                os.fsync(f.fileno())
            count, begin = 0, time.monotonic()
            while time.monotonic() < begin + seconds:
                os.pwrite(f.fileno(), block, count * 4096 % size if size else count * 4096)
                os.fdatasync(f.fileno())
                count += 1
            rates[label] = count / (time.monotonic() - begin)
        os.unlink(path)
    return rates


class Bench:
    def __init__(self, args):
        self.args, self.figures, self.rows, self.disk = args, {}, [], []
        cores = sorted(os.sched_getaffinity(0))
        # One core for the server, one for the load; with a single core they share it.
        self.server_core, self.client_core = (cores[0], cores[-1]) if len(cores) > 1 else (None, None)
        self.dir = os.path.join(args.scratch, f"isopod-bench-store-{os.getpid()}")
        os.makedirs(self.dir)

    def load(self, system, work, **flags):
        args = [self.args.load, "--endpoint", system.endpoint()]
        for key, value in flags.items():
            key = key.replace("_", "-")
            args += [f"--{key}"] if value is True else [f"--{key}", str(value)]
        pin = ["taskset", "-c", str(self.client_core)] if self.client_core is not None else []
        return json.loads(run([*pin, *args, work], timeout=7200).stdout)

    def put(self, system, **flags):
        """Writes keys that are there. kine takes transactions only."""
        return self.load(system, "update" if system.transactions else "put", **flags)

    def note(self, what, unit, system, value, more_is_better=False):
        row = self.figures.setdefault(what, {"unit": unit, "more_is_better": more_is_better, "values": {}})
        row["values"].setdefault(system.name, []).append(value)

    def costed(self, system, what, measure):
        """The load's report, and what a request cost the server."""
        io, cpu = system.written(), system.cost("cpu")
        got = measure()
        self.note(what, "/s", system, got["per_second"], True)
        self.note(f"{what}: CPU of the server", "µs", system, (system.cost("cpu") - cpu) / got["count"] * 1e6)
        return got, (system.written() - io) / got["count"]

    @contextlib.contextmanager
    def systems(self):
        """All systems, started and with ten thousand keys."""
        made = []
        try:
            for cls in self.args.chosen:
                system = cls(self.args, self.dir, self.server_core)
                made.append(system.start())
                self.load(system, "create", keys=0, count=10_000, clients=64)
            yield made
        finally:
            for system in made:
                system.close()

    # -- the measurements

    def throughput(self):
        with self.systems() as systems:
            for round in range(self.args.rounds):
                print(f"round {round + 1} of {self.args.rounds}", file=sys.stderr, flush=True)
                self.disk.append(disk(self.dir))
                # Each comes first in its turn: what one leaves to the disk to do, the next one feels.
                systems.append(systems.pop(0))
                for clients in CLIENTS:
                    self.writes(systems, clients)
                for clients in CLIENTS:
                    for system in systems:
                        self.costed(system, f"gets, {clients} clients", lambda: self.load(system, "get", clients=clients, seconds=self.args.seconds))  # noqa: B023
                for clients in LIST_CLIENTS:
                    for system in systems:
                        self.costed(system, f"lists of 10,000 keys, {clients} clients", lambda: self.load(system, "list", clients=clients, seconds=self.args.seconds))  # noqa: B023
                self.watches(systems, round)
            for system in systems:
                self.note("memory after these (PSS)", "MiB", system, system.cost("memory"))

    def writes(self, systems, clients):
        flags = {"clients": clients, "seconds": self.args.seconds}
        for system in systems:
            got, written = self.costed(system, f"puts, {clients} clients", lambda: self.put(system, **flags))  # noqa: B023
            self.note(f"puts, {clients} clients: written to disk", "B", system, written)
            self.note(f"puts, {clients} clients: p99", "ms", system, got["p99_ms"])
        for system in systems:
            self.costed(system, f"transactions, {clients} clients", lambda: self.load(system, "update", **flags))  # noqa: B023

    def watches(self, systems, round):
        for system in systems:
            for label, shared, count in (("one of 1,000 watches", 1, 200), ("all of 1,000 watches", 1000, 50)):
                flags = {"watches": 1000, "watches_a_key": shared, "count": count, "prefix": f"/registry/watched{shared}-{round}"}
                if system.transactions:
                    flags["transactions"] = True
                got = self.load(system, "watch", **flags)
                self.note(f"from a put to {label}, p50", "ms", system, got["p50_ms"])
                self.note(f"from a put to {label}, p99", "ms", system, got["p99_ms"])

    def each(self, wanted, measure):
        """A fresh server at a time: these measurements take long, and much disk. One that fails costs the others nothing."""
        for cls in filter(wanted, self.args.chosen):
            print(cls.title, file=sys.stderr, flush=True)
            system = cls(self.args, self.dir, self.server_core)
            system.start()
            try:
                measure(system)
            except Failure as e:
                print(f"{cls.title}: {e}", file=sys.stderr, flush=True)
            finally:
                system.close()

    def compact(self, system, tries=5):
        """Seconds. kine refuses its newest revision as one to come until it has looked for it."""
        while True:
            begin = time.monotonic()
            try:
                self.load(system, "compact", count=1)
                return time.monotonic() - begin
            except Failure as e:
                tries -= 1
                if not tries or "future revision" not in str(e):
                    raise
                time.sleep(1)

    def size(self):
        """What all of them can write in a minute or two, and then many more puts for those that are fast enough."""
        few, many = min(self.args.few, self.args.puts), self.args.puts
        for puts in dict.fromkeys((few, many)):
            self.each(lambda cls: puts == few or cls.fast, lambda system: self.size_after(system, puts))  # noqa: B023

    def size_after(self, system, puts):
        self.load(system, "create", keys=0, count=10_000, clients=64)
        io = system.written()
        got = self.put(system, clients=64, count=puts)
        written = system.written() - io
        after = f"{puts:,} puts"
        self.note(f"{after} over 10,000 keys, 64 clients", "/s", system, got["per_second"], True)
        self.note(f"{after}: written to disk, each", "B", system, written / puts)
        self.note(f"{after}: slowest", "ms", system, got["max_ms"])
        self.note(f"{after}: size", "MiB", system, system.size() / 2**20)
        cpu = system.cost("cpu")
        self.note(f"{after}: compaction", "s", system, self.compact(system))
        self.note(f"{after}: compaction, CPU of the server", "s", system, system.cost("cpu") - cpu)
        self.note(f"{after}: size after compaction", "MiB", system, system.size() / 2**20)
        begin = time.monotonic()
        system.defragment(lambda work, **flags: self.load(system, work, **flags))
        self.note(f"{after}: defragmentation", "s", system, time.monotonic() - begin)
        self.note(f"{after}: size after defragmentation", "MiB", system, system.size() / 2**20)
        self.note(f"{after}: memory (PSS)", "MiB", system, system.cost("memory"))

    def flat(self):
        self.each(lambda cls: cls.fast, self.few_and_many)

    def few_and_many(self, system):
        many = self.args.keys
        self.load(system, "create", keys=0, count=10_000, clients=64)
        self.at(system, 10_000)
        self.load(system, "create", keys=10_000, count=many - 10_000, clients=64)
        self.at(system, many)
        self.note(f"memory with {many:,} keys (PSS)", "MiB", system, system.cost("memory"))

    def at(self, system, keys):
        flags = {"clients": 64, "keys": keys, "seconds": self.args.seconds}
        for _ in range(self.args.rounds):
            self.costed(system, f"puts, {keys:,} keys", lambda: self.put(system, **flags))
            self.costed(system, f"gets, {keys:,} keys", lambda: self.load(system, "get", **flags))
            self.costed(system, f"lists of 10,000 of {keys:,} keys", lambda: self.load(system, "list", keys=keys, seconds=self.args.seconds))

    # -- the result

    def table(self):
        chosen = self.args.chosen
        lines = [f"| what | {' | '.join(cls.title for cls in chosen)} |", f"| --- |{' ---: |' * len(chosen)}"]
        for what, row in self.figures.items():
            cells = []
            for cls in chosen:
                values = row["values"].get(cls.name, [])
                if not values:
                    cells.append("")
                    continue
                cell = f"{number(statistics.median(values))} {row['unit']}"
                if row["values"].get(cls.beside):
                    cell += f" ({number(ratio(row, cls.beside, cls.name))} ×)"
                cells.append(cell)
            lines.append(f"| {what} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def result(self):
        return {
            "machine": {"cores": len(os.sched_getaffinity(0)), "kernel": os.uname().release},
            "date": time.strftime("%Y-%m-%d"),
            "disk_syncs_per_second": {k: statistics.median(d[k] for d in self.disk) for k in ("overwrite", "append")} if self.disk else {},
            "figures": self.figures,
        }


def ratio(row, first, other):
    """How many times better the first one is: the median over the rounds."""
    pairs = [(a, b) for a, b in zip(row["values"][first], row["values"][other]) if a and b]
    if not pairs:
        return 0
    return statistics.median(a / b if row["more_is_better"] else b / a for a, b in pairs)


def number(value):
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isopod", required=True)
    parser.add_argument("--load", required=True, help="e2e/store-load, built")
    parser.add_argument("--upstream", required=True, help="directory of upstream's etcd")
    parser.add_argument("--kine", required=True, help="directory of kine")
    parser.add_argument("--out", required=True, help="the result as JSON, and beside it the table")
    parser.add_argument("--scratch", default="/var/tmp", help="data directories are made here: on the disk that is to be measured")
    parser.add_argument("--systems", default="", help="names, with commas between: " + ", ".join(s.name for s in SYSTEMS))
    parser.add_argument("--only", default="", choices=["", "throughput", "size", "flat"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2, help="length of each measurement of a rate")
    parser.add_argument("--puts", type=int, default=1_000_000, help="puts before the size is looked at, of Isopod on SQLite and of etcd")
    parser.add_argument("--few", type=int, default=20_000, help="puts before the size of all systems is looked at")
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys of the large store, of Isopod on SQLite and of etcd")
    args = parser.parse_args()
    wanted = [s for s in args.systems.split(",") if s]
    args.chosen = []
    for cls in SYSTEMS:
        if wanted and cls.name not in wanted:
            continue
        why = cls.missing(args)
        if why:
            print(f"{cls.title} is not measured: {why}", file=sys.stderr)
        else:
            args.chosen.append(cls)
    bench = Bench(args)
    try:
        for name in ("throughput", "size", "flat"):
            if args.only in ("", name):
                getattr(bench, name)()
                # What is there by now is kept, whatever comes.
                with open(args.out, "w") as f:
                    json.dump(bench.result(), f, indent=1, ensure_ascii=False)
    finally:
        shutil.rmtree(bench.dir, ignore_errors=True)
    table = bench.table()
    with open(os.path.splitext(args.out)[0] + ".md", "w") as f:
        f.write(table + "\n")
    print(table)
    if bench.disk:
        print("disk: " + ", ".join(f"{v:,.0f} syncs/s ({k})" for k, v in bench.result()["disk_syncs_per_second"].items()))


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(str(e))
