#!/usr/bin/env python3
"""`make bench`: prints one table and writes JSON. Every figure is measured here, in one run, in network namespaces of its own.

Timings are those of one machine on one day: compare runs on the same machine only."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from harness import Cluster, deployment, pod, run, wait  # noqa: E402

IDLE_SECONDS = 300


def pss(pids):
    """Proportional set size of processes, MiB."""
    kib = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            kib += int(re.search(r"^Pss:\s+(\d+)", f.read(), re.M)[1])
    return kib / 1024


def children(cluster, name):
    """Processes of this cluster whose command line holds `name`: shims are told apart by the cluster's run directory."""
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


def server_pid(cluster):
    """nsenter executes the server in its own place: its process is the server."""
    return cluster.server.pid


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written(pid):
    with open(f"/proc/{pid}/io") as f:
        return int(re.search(r"^write_bytes: (\d+)", f.read(), re.M)[1])


class Bench:
    def __init__(self, args):
        self.args, self.rows = args, []
        load = os.path.join(os.path.dirname(args.isopod), "isopod-e2e-load")
        self.load = args.load or load

    def row(self, what, value, unit, goal=""):
        self.rows.append({"what": what, "value": value, "unit": unit, "goal": goal})
        print(f"{what:58} {value:>12.3f} {unit:10} {goal}", flush=True)

    def cluster(self, **kw):
        return Cluster(self.args.isopod, self.args.tools, self.args.app, **kw)

    # -- one measurement each

    def starts(self):
        cluster = self.cluster()
        try:
            for label, goals in (("first start", ("0.65 s", "1 s")), ("restart", ("0.15 s", "0.5 s"))):
                begin = time.monotonic()
                cluster.start(wait_ready=False)
                self.row(f"{label} to /readyz", self.until(cluster, "/readyz", begin), "s", goals[0])
                ready = lambda: any(c["type"] == "Ready" and c["status"] == "True" for c in self.api(cluster, "/api/v1/nodes/box")["status"]["conditions"])  # noqa: E731
                wait("node", ready)
                self.row(f"{label} to node Ready", time.monotonic() - begin, "s", goals[1])
                if label == "first start":
                    wait("sa", lambda: cluster.kubectl("get", "sa", "default"))
                    begin_pod = time.monotonic()
                    cluster.apply(pod("first", cluster.image("busybox:1.36"), ["sleep", "100000"]))
                    wait("pod", lambda: self.api(cluster, "/api/v1/namespaces/default/pods/first")["status"]["phase"] == "Running")
                    self.row("first pod Running (with image pull)", time.monotonic() - begin_pod, "s", "1 s")
                    cluster.stop()
            self.idle(cluster)
            self.pods(cluster)
        finally:
            cluster.close()

    def until(self, cluster, path, begin):
        wait(path, lambda: run(cluster.net.inside(["curl", "-skf", "https://127.0.0.1:6443" + path]), check=False).returncode == 0)
        return time.monotonic() - begin

    def api(self, cluster, path):
        return json.loads(cluster.kubectl("get", "--raw", path))

    def idle(self, cluster):
        cluster.kubectl("delete", "pod", "first")
        pid = server_pid(cluster)
        time.sleep(10)
        cpu, io, begin = cpu_seconds(pid), written(pid), time.monotonic()
        time.sleep(self.args.idle)
        seconds = time.monotonic() - begin
        self.row("idle memory, one node with everything (PSS)", pss([pid]), "MiB", "50")
        self.row("idle CPU", (cpu_seconds(pid) - cpu) / seconds * 100, "% of core", "0.2")
        self.row("idle disk writes", (written(pid) - io) / seconds * 60, "B/minute", "0")

    def pods(self, cluster):
        pid = server_pid(cluster)
        one = [self.pod_start(cluster, n) for n in range(20)]
        self.row("pod start with kubectl's own, image present, p50", statistics.median(one) * 1000, "ms", "100")
        self.row("pod start with kubectl's own, image present, p99", max(one) * 1000, "ms", "300")
        cluster.kubectl("delete", "pods", "--all", "--grace-period=0", "--force")
        wait("gone", lambda: not cluster.get("pods")["items"])
        before = pss([pid])
        begin = time.monotonic()
        cluster.apply(deployment("many", cluster.image("busybox:1.36"), 100, command=["sleep", "100000"]))
        wait("100 pods", lambda: cluster.get("deployment", "many")["status"].get("readyReplicas") == 100, 120)
        self.row("100 pods Running", time.monotonic() - begin, "s", "5")
        shims = children(cluster, "isopod-shim")
        self.row("memory a pod (shim PSS)", pss(shims) / max(1, len(shims)), "MiB", "1")
        self.row("memory a pod (server's growth)", (pss([pid]) - before) / 100, "MiB")
        cluster.kubectl("delete", "deployment", "many", "--cascade=foreground", timeout=180)

    def pod_start(self, cluster, n):
        name = f"quick-{n}"
        args = cluster.kubectl_args("get", "pods", "--watch", "-o", "jsonpath={.metadata.name} {.status.phase}\n")
        watcher = subprocess.Popen(args, stdout=subprocess.PIPE, text=True, env=cluster.env())
        try:
            body = json.dumps(pod(name, cluster.image("busybox:1.36"), ["sleep", "100000"]))
            # From before kubectl starts: its own start is in the figure, so the figure is never too good.
            begin = time.monotonic()
            cluster.kubectl("create", "--raw", "/api/v1/namespaces/default/pods", "-f", "-", input=body)
            for line in watcher.stdout:
                if line.split() == [name, "Running"]:
                    return time.monotonic() - begin
        finally:
            watcher.kill()
            watcher.wait()
        raise SystemExit(f"the watch ended before {name} ran")

    def throughput(self):
        cluster = self.cluster(agent=False)
        try:
            cluster.start()
            wait("sa", lambda: cluster.kubectl("get", "sa", "default"))
            pid = server_pid(cluster)
            self.row("server alone, idle memory (PSS)", pss([pid]), "MiB", "30")
            for clients in (1, 16, 64):
                cpu = cpu_seconds(pid)
                got = self.run_load(cluster, "create-configmaps", clients, 2000 * (1 if clients == 1 else 5), f"c{clients}")
                self.row(f"durable creates, {clients} clients", got["per_second"], "/s")
                self.row(f"  server CPU a create, {clients} clients", (cpu_seconds(pid) - cpu) / got["count"] * 1e6, "µs")
            got = self.run_load(cluster, "get-configmaps", 64, 20000, "c64", count=10000)
            self.row("gets, 64 clients", got["per_second"], "/s")
            self.run_load(cluster, "create-pods", 16, 10000, "p")
            for accept, label in (("application/json", "JSON"), ("application/vnd.kubernetes.protobuf", "protobuf")):
                got = self.run_load(cluster, "list-pods", 1, 10, "p", accept=accept)
                self.row(f"list of 10,000 pods, {label}", got["p50_ms"], "ms")
            self.row("memory with 10,000 pods (PSS)", pss([pid]), "MiB")
        finally:
            cluster.close()

    def run_load(self, cluster, work, clients, count_default, prefix, count=None, accept=None):
        args = [self.load, "--kubeconfig", cluster.kubeconfig, "--clients", str(clients), "--count", str(count or count_default), "--prefix", prefix, work]
        if accept:
            args[-1:-1] = ["--accept", accept]
        return json.loads(run(cluster.net.inside(args), timeout=600).stdout)

    def services(self):
        cluster = self.cluster()
        try:
            cluster.start()
            cluster.apply(deployment("web", cluster.image("app:v1"), 1, ports=[{"containerPort": 8080}]))
            cluster.kubectl("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
            self.run_load(cluster, "create-services", 16, 10000, "s")
            times = []
            for n in range(5):
                cluster.kubectl("expose", "deployment", "web", f"--name=added-{n}", "--port=80", "--target-port=8080")
                ip = cluster.get("service", f"added-{n}")["spec"]["clusterIP"]
                made = time.monotonic()
                wait("answers", lambda: run(cluster.net.inside(["curl", "-sf", "--max-time", "1", f"http://{ip}/"]), check=False).returncode == 0)  # noqa: B023
                times.append(time.monotonic() - made)
            self.row("one service added to 10,000: until it answers, median", statistics.median(times) * 1000, "ms")
        finally:
            cluster.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--isopod", required=True)
    parser.add_argument("--tools", required=True)
    parser.add_argument("--app")
    parser.add_argument("--load")
    parser.add_argument("--out", required=True)
    parser.add_argument("--idle", type=int, default=IDLE_SECONDS)
    parser.add_argument("--only", default="", help="starts, throughput or services")
    args = parser.parse_args()
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
