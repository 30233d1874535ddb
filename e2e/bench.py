#!/usr/bin/env python3
"""`make bench`: prints one table and writes JSON. Every figure is measured here, in one run, in network namespaces of its own.

What upstream can do, too, is done by both in the same run: kube-apiserver and etcd, built from their modules, stand beside an
`isopod server` that runs no more than they do (no node, controllers or scheduler), and the last column is the ratio, above 1
where Isopod is better. With two cores or more the clients run on one that no server uses. Timings are those of one machine on
one day: compare runs on the same machine only. `--quick` does a fifth of each part: the figures are rougher, the rows the same."""

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from harness import Cluster, Failure, deployment, pod, run, wait  # noqa: E402

SETTLED_SECONDS = 30
IDLE_SECONDS = 300
POD_STARTS = 200
SERVICES = 10_000
# What is compared is measured so often, in turns; medians are shown. One shot tells little on a machine that others use, too.
ROUNDS = 4
# Creates by so many clients: what, how the load generator calls it, names begin with, and how many of each in all rounds.
CREATES = (
    ("1 kB (config maps)", "create-configmaps", "c", {1: 2000, 16: 10_000, 64: 10_000}),
    ("4 kB (pods)", "create-pods", "p", {1: 2000, 16: 4000, 64: 4000}),
)
# With those above, 50,000 objects.
MORE_MAPS = 18_000


def pss(pids):
    """Proportional set size of processes, MiB."""
    kib = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            kib += int(re.search(r"^Pss:\s+(\d+)", f.read(), re.M)[1])
    return kib / 1024


def peak(pids):
    """The most that processes had resident since `forget_peak`, MiB."""
    kib = 0
    for pid in pids:
        with open(f"/proc/{pid}/status") as f:
            kib += int(re.search(r"^VmHWM:\s+(\d+)", f.read(), re.M)[1])
    return kib / 1024


def forget_peak(pids):
    for pid in pids:
        with open(f"/proc/{pid}/clear_refs", "w") as f:
            f.write("5")


def children(cluster, name):
    """Processes of this cluster whose command line holds `name`: shims are told apart by the cluster's cgroup."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as f:
                if f.read().strip() == name:
                    with open(f"/proc/{pid}/cgroup") as groups:
                        if cluster.cgroup in groups.read():
                            found.append(pid)
        except OSError:
            continue
    return found


def cpu_seconds(pids):
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rsplit(") ", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def written(pids):
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/io") as f:
            total += int(re.search(r"^write_bytes: (\d+)", f.read(), re.M)[1])
    return total


class Side:
    """A server under load: its processes, how to reach it, and where its clients run."""

    def __init__(self, name, pids, kubeconfig, inside):
        self.name, self.pids, self.kubeconfig, self.inside = name, pids, kubeconfig, inside
        # On some processors of AMD `rep movsb`, with which glibc copies, takes many times as long where source and destination lie just
        # so: of 51 ms that a list took, 20 were the client's copying.
        self.clients = ["env", "GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=1000000000"]
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1:
            # Every thread that is there; those to come inherit it.
            for pid in pids:
                run(["taskset", "-a", "-c", "-p", ",".join(map(str, cores[:-1])), str(pid)])
            self.clients += ["taskset", "-c", str(cores[-1])]

    def load(self, program, work, **flags):
        args = [program, "--kubeconfig", self.kubeconfig]
        if self.pids:
            args += ["--pids", ",".join(map(str, self.pids))]
        for key, value in flags.items():
            args += [f"--{key}", str(value)]
        return json.loads(run(self.inside([*self.clients, *args, work]), timeout=900).stdout)


class Bench:
    def __init__(self, args):
        self.args, self.rows = args, []
        # Of numbers of objects and requests, all of which can be divided by five.
        self.scale = 5 if args.quick else 1
        self.program = args.load or os.path.join(os.path.dirname(args.isopod), "isopod-e2e-load")

    def row(self, what, value, unit, goal="", upstream=None, more_is_better=False):
        row = {"what": what, "value": value, "unit": unit, "goal": goal}
        beside = ""
        if upstream is not None:
            ratio = (value / upstream if more_is_better else upstream / value) if value and upstream else 0
            row |= {"upstream": upstream, "ratio": ratio}
            beside = f"upstream {upstream:.3f}: {ratio:.1f} times"
        self.rows.append(row)
        print(f"{what:58} {value:>12.3f} {unit:10} {goal:>8}  {beside}", flush=True)

    def cluster(self, **kw):
        return Cluster(self.args.isopod, self.args.tools, self.args.app, **kw)

    # -- one measurement each

    def starts(self):
        cluster = self.cluster()
        try:
            for label, goals in (("first start", ("0.65 s", "1 s", "1.5 s")), ("restart", ("0.15 s", "0.5 s", "1 s"))):
                begin = time.monotonic()
                cluster.start(wait_ready=False)
                self.row(f"{label} to /readyz", self.until(cluster, "/readyz", begin), "s", goals[0])
                self.until_said(cluster, "Node ready", label)
                self.row(f"{label} to node Ready", time.monotonic() - begin, "s", goals[1])
                wait("sa", lambda: cluster.kubectl("get", "sa", "default"))
                name = label.replace(" ", "-")
                cluster.apply(pod(name, cluster.image("busybox:1.36"), ["sleep", "100000"]))
                wait("pod", lambda: self.api(cluster, f"/api/v1/namespaces/default/pods/{name}")["status"]["phase"] == "Running", every=0.005)  # noqa: B023
                self.row(f"{label} to a new pod Running, kubectl's start included", time.monotonic() - begin, "s", goals[2])
                if label == "first start":
                    cluster.stop()
            self.idle(cluster)
            self.pods(cluster)
        finally:
            cluster.close()

    def until(self, cluster, path, begin):
        answers = lambda: run(cluster.net.inside(["curl", "-skf", "https://127.0.0.1:6443" + path]), check=False).returncode == 0  # noqa: E731
        wait(path, answers, every=0.002)
        return time.monotonic() - begin

    def until_said(self, cluster, words, label):
        """Waits for what the server says of this start: an earlier one's line is in the log, too."""
        times = cluster.starts
        wait(f"{words} ({label})", lambda: cluster.log_tail(10_000).count(words) >= times, every=0.005)

    def api(self, cluster, path):
        return json.loads(cluster.kubectl("get", "--raw", path))

    def idle(self, cluster):
        cluster.kubectl("delete", "pod", "--all", "--grace-period=0", "--force")
        pids = [cluster.server.pid]
        time.sleep(10)
        cpu, io, begin = cpu_seconds(pids), written(pids), time.monotonic()
        time.sleep(self.args.idle)
        seconds = time.monotonic() - begin
        self.row("idle memory, one node with everything (PSS)", pss(pids), "MiB", "50")
        self.row("idle CPU", (cpu_seconds(pids) - cpu) / seconds * 100, "% of core", "0.2")
        self.row("idle disk writes", (written(pids) - io) / seconds * 60, "B/minute", "0")

    def pods(self, cluster):
        pids = [cluster.server.pid]
        image = cluster.image("busybox:1.36")
        side = Side("isopod", [], cluster.kubeconfig, cluster.net.inside)
        got = side.load(self.program, "start-pods", count=POD_STARTS // self.scale, prefix="quick", image=image)
        self.row("pod start, image present, seen by a watcher, p50", got["p50_ms"], "ms", "100")
        self.row("pod start, image present, seen by a watcher, p99", got["p99_ms"], "ms", "300")
        before = pss(pids)
        begin = time.monotonic()
        cluster.apply(deployment("many", image, 100, command=["sleep", "100000"]))
        wait("100 pods", lambda: cluster.get("deployment", "many")["status"].get("readyReplicas") == 100, 120)
        self.row("100 pods Running", time.monotonic() - begin, "s", "5")
        shims = children(cluster, "isopod-shim")
        self.row("memory a pod (shim PSS)", pss(shims) / max(1, len(shims)), "MiB", "1")
        self.row("memory a pod (server's growth)", (pss(pids) - before) / 100, "MiB")
        cluster.kubectl("delete", "deployment", "many", "--cascade=foreground", timeout=180)

    # -- beside upstream

    @contextlib.contextmanager
    def sides(self):
        """Isopod's API server alone and, where it was built, upstream's, in one network namespace."""
        cluster = self.cluster(agent=False, server_args=["--disable-controller-manager", "--disable-scheduler"])
        upstream = None
        try:
            cluster.start()
            # Nothing makes it there: controllers are not part of the comparison.
            cluster.kubectl("create", "serviceaccount", "default")
            sides = [Side("isopod", [cluster.server.pid], cluster.kubeconfig, cluster.net.inside)]
            if self.args.oracle:
                kubeconfig, pids = f"{cluster.dir}/upstream.yaml", f"{cluster.dir}/upstream.json"
                command = [self.args.oracle, "up", "-upstream", self.args.upstream, "-kubeconfig", kubeconfig, "-pids", pids]
                log = open(f"{cluster.dir}/upstream.log", "wb")
                upstream = subprocess.Popen(cluster.net.inside(command), stdin=subprocess.PIPE, stdout=log, stderr=log)
                started = wait("upstream's server", lambda: os.path.exists(pids) and json.load(open(pids)), 120)
                kubectl = [f"{self.args.tools}/kubectl-1.37", "--kubeconfig", kubeconfig]
                run(cluster.net.inside([*kubectl, "create", "serviceaccount", "default"]), env=cluster.env())
                sides.append(Side("upstream", [str(p) for p in started.values()], kubeconfig, cluster.net.inside))
            yield sides
        finally:
            if upstream:
                upstream.send_signal(signal.SIGTERM)
                try:
                    upstream.wait(30)
                except subprocess.TimeoutExpired:
                    upstream.kill()
                    raise Failure("upstream's server did not stop") from None
            cluster.close()

    def both(self, sides, what, unit, measure, goal="", more_is_better=False):
        """Measures all sides in turns. `measure` gets the side and the round."""
        values = {side.name: [] for side in sides}
        for n in range(ROUNDS):
            for side in sides if n % 2 == 0 else reversed(sides):
                values[side.name].append(measure(side, n))
        medians = [statistics.median(of) for of in values.values()]
        self.row(what, medians[0], unit, goal, *medians[1:], more_is_better=more_is_better)

    def throughput(self):
        with self.sides() as sides:
            # What only the start needed is gone by then.
            time.sleep(SETTLED_SECONDS)
            self.both(sides, "server alone, idle memory (PSS)", "MiB", lambda s, _: pss(s.pids), "30")
            for what, work, prefix, counts in CREATES:
                for clients, count in counts.items():
                    self.creates(sides, what, clients, work, count // self.scale // ROUNDS, f"{prefix}{clients}")
            for clients in (1, 16, 64):
                count = CREATES[0][3][64] // self.scale // ROUNDS

                def get(side, n):
                    return side.load(self.program, "get-configmaps", clients=clients, count=count, prefix=f"c64-{n}")["per_second"]  # noqa: B023

                self.both(sides, f"gets, {clients} clients", "/s", get, "", True)
            for side in sides:
                side.load(self.program, "create-configmaps", clients=64, count=MORE_MAPS // self.scale, prefix="more")
            counts = [sum(of.values()) // self.scale for *_, of in CREATES]
            total = f"{counts[1]:,} pods and {counts[0] + MORE_MAPS // self.scale:,} config maps"
            self.lists(sides, counts[1])
            # Isopod keeps in memory what was listed or watched, upstream everything.
            for side in sides:
                side.load(self.program, "list-configmaps", count=1, accept="application/json")
            self.both(sides, f"memory with {total}, all listed (PSS)", "MiB", lambda s, _: pss(s.pids))
            self.watches(sides)
        self.followed()

    def creates(self, sides, what, clients, work, count, prefix):
        """Objects a second, and the CPU that the servers take for one."""
        used = {side.name: [] for side in sides}

        def create(side, n):
            got = side.load(self.program, work, clients=clients, count=count, prefix=f"{prefix}-{n}")
            used[side.name].append(got["server_cpu_seconds"] / got["count"] * 1e6)
            return got["per_second"]

        self.both(sides, f"durable creates of {what}, {clients} clients", "/s", create, "5 ×" if clients == 64 else "", True)
        # A tick of the kernel's count is much for a second's work: the mean.
        self.both(sides, f"  server CPU a create, {clients} clients", "µs", lambda s, _: statistics.mean(used[s.name]), "5 ×")

    def followed(self):
        """Pods with all that follows them in a whole server: the scheduler's condition and Event, the controllers' looks."""
        cluster = self.cluster(agent=False)
        try:
            cluster.start()
            wait("sa", lambda: cluster.kubectl("get", "sa", "default"))
            side = Side("isopod", [cluster.server.pid], cluster.kubeconfig, cluster.net.inside)
            cpu = cpu_seconds(side.pids)
            count = CREATES[1][3][16] // self.scale
            got = side.load(self.program, "create-pods", clients=16, count=count, prefix="p")
            self.row("pods with controllers and scheduler, 16 clients", got["per_second"], "/s")
            before = cpu
            while (now := cpu_seconds(side.pids)) - before > 0.05:
                before = now
                time.sleep(1)
            self.row("  server CPU a pod, with all that follows", (now - cpu) / count * 1e6, "µs")
        finally:
            cluster.close()

    def lists(self, sides, pods):
        forms = (
            ("JSON", "10 ×", {"accept": "application/json"}),
            ("JSON as gzip", "3 ×", {"accept": "application/json", "accept-encoding": "gzip"}),
            ("protobuf", "3 ×", {"accept": "application/vnd.kubernetes.protobuf"}),
        )
        for label, goal, form in forms:
            used = {side.name: [] for side in sides}

            def lists(side, _):
                got = side.load(self.program, "list-pods", count=5, **form)  # noqa: B023
                used[side.name].append(got["server_cpu_seconds"] / got["count"] * 1000)  # noqa: B023
                return got["p50_ms"]

            self.both(sides, f"list of {pods:,} pods, {label}, p50", "ms", lists, goal)
            self.both(sides, f"  server CPU a list, {label}", "ms", lambda s, _: statistics.mean(used[s.name]))  # noqa: B023
        for label, _, form in forms:
            for side in sides:
                forget_peak(side.pids)
                side.load(self.program, "list-pods", clients=10, count=20, **form)
            self.both(sides, f"  most memory in ten lists at once, {label} (RSS)", "MiB", lambda s, _: peak(s.pids))

    def watches(self, sides):
        for watchers in (1000 // self.scale, 10_000 // self.scale):
            seen = {side.name: [] for side in sides}

            def change(side, n):
                got = side.load(self.program, "watch-changes", watchers=watchers, count=5, prefix=f"w{watchers}-{n}")  # noqa: B023
                seen[side.name].append(got)  # noqa: B023
                return got["p50_ms"]

            self.both(sides, f"one change to {watchers:,} watchers, p50", "ms", change)
            self.both(sides, f"one change to {watchers:,} watchers, p99", "ms", lambda s, _: statistics.median(of["p99_ms"] for of in seen[s.name]), "100" if watchers > 1000 else "")  # noqa: B023
            event = lambda s, _: statistics.mean(of["server_cpu_seconds"] / of["count"] for of in seen[s.name]) * 1e6  # noqa: B023, E731
            self.both(sides, "  server CPU a watcher's event", "µs", event)

    def services(self):
        cluster, services = self.cluster(), SERVICES // self.scale
        try:
            cluster.start()
            cluster.apply(deployment("web", cluster.image("app:v1"), 1, ports=[{"containerPort": 8080}]))
            cluster.kubectl("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
            side = Side("isopod", [], cluster.kubeconfig, cluster.net.inside)
            begin = time.monotonic()
            side.load(self.program, "create-services", clients=16, count=services, prefix="s")
            self.row(f"{services:,} services made", time.monotonic() - begin, "s")
            last = cluster.get("service", f"s-{services - 1}")["spec"]["clusterIP"]
            wait("the last service answers", lambda: self.answers(cluster, last), 300)
            self.row(f"{services:,} services, until the last one answers", time.monotonic() - begin, "s")
            times = []
            for n in range(11):
                spec = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}
                body = json.dumps({"metadata": {"name": f"added-{n}"}, "spec": spec})
                # kubectl's own start is in the figure, so the figure is never too good.
                begin = time.monotonic()
                made = json.loads(cluster.kubectl("create", "--raw", "/api/v1/namespaces/default/services", "-f", "-", input=body))
                ip = made["spec"]["clusterIP"]
                wait("answers", lambda: self.answers(cluster, ip), every=0.001)  # noqa: B023
                times.append(time.monotonic() - begin)
            self.row(f"one service added to {services:,}, kubectl's start included, p50", statistics.median(times) * 1000, "ms")
        finally:
            cluster.close()

    def answers(self, cluster, ip):
        return run(cluster.net.inside(["curl", "-sf", "--max-time", "1", f"http://{ip}/"]), check=False).returncode == 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--isopod", required=True)
    parser.add_argument("--tools", required=True)
    parser.add_argument("--app")
    parser.add_argument("--load")
    parser.add_argument("--oracle", help="e2e/oracle, built: starts upstream's server; without it there is no comparison")
    parser.add_argument("--upstream", help="directory of upstream's etcd and kube-apiserver")
    parser.add_argument("--out", required=True)
    parser.add_argument("--idle", type=int, default=IDLE_SECONDS)
    parser.add_argument("--quick", action="store_true", help="a fifth of the objects and requests, and of the time idle")
    parser.add_argument("--only", default="", help="starts, throughput or services")
    args = parser.parse_args()
    if args.quick:
        args.idle //= 5
    args.app = args.app or os.path.join(os.path.dirname(args.isopod), "isopod-e2e-app")
    bench = Bench(args)
    bench.row("binary, static, stripped", os.path.getsize(args.isopod) / 2**20, "MiB", "30")
    for name in ("starts", "throughput", "services"):
        if args.only in name:
            getattr(bench, name)()
    with open(args.out, "w") as f:
        json.dump({"machine": os.uname().release, "cores": os.cpu_count(), "rows": bench.rows}, f, indent=1)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
