"""Runs e2e.test through ginkgo against a cluster: outside of it, where a user's machine would be."""

import json
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import catalog  # noqa: E402
import specs  # noqa: E402
from harness import CLIENT_IP, NODE_IP, Cluster  # noqa: E402
from registry import Registry  # noqa: E402

# For one stage of one SIG; specs have their own time-outs within it, and some that wait for a missing feature have none.
TIMEOUT = "90m"
# Specs that poll for what is not there, without a limit of their own: they have failed long before.
ENDLESS = "2m"


def images(upstream):
    """The images that upstream's suite may use, as it says itself."""
    done = subprocess.run([f"{upstream}/e2e.test", "--list-images"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


class Runner:
    """A cluster and what runs specs against it."""

    def __init__(self, args, upstream, storage):
        self.args, self.upstream = args, upstream
        self.held = catalog.use(storage)
        registry = Registry(catalog.hosts(catalog.table()), storage=storage)
        self.cluster = Cluster(args.isopod, args.tools, None, registry=registry)
        self.kubeconfig = f"{self.cluster.dir}/outside.kubeconfig"
        self.nameserver = None

    def __enter__(self):
        try:
            self._nameserver()
            self.cluster.start()
            self._kubeconfig()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_):
        log = f"{self.cluster.dir}/server.log"
        if os.path.exists(log):
            shutil.copyfile(log, f"{self.args.out}/server.log")
        self._close()

    def _close(self):
        if self.nameserver:
            self.nameserver.kill()
            self.nameserver.wait()
        self.cluster.close()
        os.close(self.held)

    def _nameserver(self):
        command = self.cluster.net.outside([sys.executable, f"{os.path.dirname(HERE)}/nameserver.py", CLIENT_IP])
        self.nameserver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if self.nameserver.stdout.readline().strip() != "ready":
            raise RuntimeError("the name server outside the cluster did not start")

    def _kubeconfig(self):
        """As an administrator elsewhere would have it: the node's address instead of loopback."""
        with open(self.cluster.kubeconfig) as f:
            text = f.read()
        with open(self.kubeconfig, "w") as f:
            f.write(text.replace("127.0.0.1", NODE_IP))

    def run(self, title, names):
        """Results by name: {state, seconds, message}."""
        results, endless = {}, specs.endless()
        rest = [n for n in names if n not in endless]
        for stage, group, processes, limit in (
            ("parallel", [n for n in rest if not specs.serial(n)], self.args.parallel, TIMEOUT),
            ("serial", [n for n in rest if specs.serial(n)], 1, TIMEOUT),
            ("endless", [n for n in names if n in endless], self.args.parallel, ENDLESS),
        ):
            if group:
                results |= self._stage(f"{title}-{stage}", group, processes, limit)
        return results

    def _stage(self, title, names, processes, limit):
        out = f"{self.args.out}/{title}"
        os.makedirs(out, exist_ok=True)
        command = self.cluster.net.outside([
            f"{self.upstream}/ginkgo", f"--procs={processes}", "--no-color", f"--timeout={limit}",
            f"--focus={specs.focus(names)}", f"--output-dir={out}", "--json-report=report.json", "--silence-skips",
            f"{self.upstream}/e2e.test", "--",
            f"--kubeconfig={self.kubeconfig}", "--provider=skeleton", f"--kubectl-path={self.args.tools}/kubectl-1.37",
            "--disable-log-dump", f"--e2e-output-dir={out}", f"--report-dir={out}",
        ])  # fmt: skip
        env = dict(os.environ, HOME=self.cluster.dir, GOMAXPROCS=str(os.cpu_count()))
        with open(f"{out}/log.txt", "w") as log:
            subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, cwd=out)
        return read(f"{out}/report.json", names)


def read(path, names):
    """What ginkgo's report says about these specs. A spec that it does not name has no result."""
    if not os.path.exists(path):
        return {}
    wanted, results = set(names), {}
    with open(path) as f:
        suites = json.load(f)
    for one in suites:
        for spec in one.get("SpecReports") or []:
            name = " ".join([*(spec.get("ContainerHierarchyTexts") or []), spec.get("LeafNodeText", "")])
            # Not selected, or cut off by whoever stopped the run: no result.
            never = spec["State"] in ("skipped", "pending") and not spec.get("NumAttempts")
            if name not in wanted or never or spec["State"] in ("interrupted", "aborted"):
                continue
            failure = spec.get("Failure") or {}
            results[name] = {
                "state": {"passed": "passed", "skipped": "skipped"}.get(spec["State"], "failed"),
                "seconds": round(spec["RunTime"] / 1e9, 1),
                "message": (failure.get("Message") or "") + "\n" + (failure.get("ForwardedPanic") or ""),
            }
    return results
