"""A cluster for tests: its own network namespaces, data directory and cgroup root, a real registry, stock kubectl.

The node lives in one network namespace, a client outside the cluster in another; a veth pair joins them, as a cable
would. Nothing outside of what is made here is touched, and `close` takes it all away again."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from registry import Registry

HERE = os.path.dirname(os.path.abspath(__file__))
NODE_IP, CLIENT_IP = "192.0.2.2", "192.0.2.1"
REGISTRY = "registry.test"
# A registry with TLS and a password, for the tests that start one. It needs no name server.
PRIVATE = "127.0.0.1:5443"
# The tests need little, and a developer's disk may be fuller than a node's should be.
LITTLE_ROOM = ["--eviction-hard", "memory.available<100Mi"]


class Failure(Exception):
    """A command failed, or a condition did not become true in time."""


def run(args, *, input=None, check=True, timeout=60, env=None, binary=False):
    """Runs a command to its end; the result has returncode, stdout, stderr."""
    done = subprocess.run(args, input=input, capture_output=True, text=not binary, timeout=timeout, env=env)
    if check and done.returncode != 0:
        raise Failure(f"{' '.join(map(str, args))}\n  exit {done.returncode}\n  {done.stdout}\n  {done.stderr}")
    return done


def wait(what, condition, timeout=60, every=0.05):
    """Waits until `condition()` is true (its value is returned); what it last saw is in the error."""
    end, last = time.monotonic() + timeout, None
    while time.monotonic() < end:
        try:
            last = condition()
            if last:
                return last
        except (Failure, OSError, ValueError, KeyError, IndexError, subprocess.TimeoutExpired) as e:
            last = e
        time.sleep(every)
    raise Failure(f"waited {timeout} s for: {what}; last saw: {last}")


class Network:
    """Two network namespaces and the cable between them."""

    def __init__(self, tag):
        self.node, self.client = f"iso-{tag}-n", f"iso-{tag}-c"
        for ns in (self.node, self.client):
            run(["ip", "netns", "add", ns])
            # Link-local addresses come and go by themselves, some seconds later: not in what the tests compare.
            off = "for f in all default; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done"
            run(["nsenter", f"--net=/run/netns/{ns}", "sh", "-c", off])
            run(["ip", "-n", ns, "link", "set", "lo", "up"])
        run(["ip", "-n", self.node, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", self.client])
        for ns, ip in ((self.node, NODE_IP), (self.client, CLIENT_IP)):
            run(["ip", "-n", ns, "addr", "add", f"{ip}/24", "dev", "eth0"])
            run(["ip", "-n", ns, "link", "set", "eth0", "up"])
        run(["ip", "-n", self.node, "route", "add", "default", "via", CLIENT_IP])

    def inside(self, args, ns=None):
        """The command, to be run in the node's namespace. nsenter and not `ip netns exec`: that one hides cgroups."""
        return ["nsenter", f"--net=/run/netns/{ns or self.node}", *map(str, args)]

    def outside(self, args):
        return self.inside(args, self.client)

    def close(self):
        for ns in (self.node, self.client):
            run(["ip", "netns", "del", ns], check=False)


class Cluster:
    """One server with its node. `server_args` are further flags; `registry` serves other images than the tests' own."""

    def __init__(self, isopod, tools, app, server_args=(), agent=True, registry=None):
        self.isopod, self.tools, self.app = isopod, tools, app
        self.tag = f"{os.getpid()}{os.urandom(2).hex()}"
        self.dir = tempfile.mkdtemp(prefix="isopod-e2e-")
        self.data = os.path.join(self.dir, "data")
        self.kubeconfig = os.path.join(self.dir, "kubeconfig")
        self.private_ca = os.path.join(self.dir, "private-ca.pem")
        self.cgroup = f"/isopod-{self.tag}"
        self.net = Network(self.tag)
        self.agent = agent
        self.server_args = list(server_args)
        self.server = self.registry = None
        self.starts = 0
        if agent:
            secure = {PRIVATE: self.private_ca}
            self.registry = registry or Registry([REGISTRY], fill=[f"{HERE}/images.py"], fill_args=[app], secure=secure)
            try:
                self.registry.start(self.dir, self.net.inside)
            except BaseException:
                self.close()
                raise

    # -- life

    def command(self):
        extra = [] if self.agent else ["--disable-agent"]
        if self.agent and "--eviction-hard" not in self.server_args:
            extra = LITTLE_ROOM
        return [
            self.isopod, "server", "--data-dir", self.data, "--write-kubeconfig", self.kubeconfig,
            "--node-name", "box", "--cgroup-root", self.cgroup, "--private-registry", f"{self.dir}/registries.yaml",
            "--resolv-conf", f"{self.dir}/resolv.conf", *extra, *self.server_args,
        ]  # fmt: skip

    def start(self, wait_ready=True):
        with open(f"{self.dir}/resolv.conf", "w") as f:
            f.write(f"nameserver {CLIENT_IP}\n")
        self.starts += 1
        self.log = open(f"{self.dir}/server.log", "ab")
        os.makedirs(f"{self.dir}/tmp", exist_ok=True)
        self.server = subprocess.Popen(
            self.net.inside(self.command()), stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL,
            env=dict(os.environ, TMPDIR=f"{self.dir}/tmp"),
        )  # fmt: skip
        if wait_ready:
            self.wait_ready()
        return self

    def wait_ready(self):
        def ready():
            if self.server.poll() is not None:
                raise SystemExit(f"the server ended with {self.server.returncode}:\n{self.log_tail()}")
            return self.kubectl("get", "--raw", "/readyz", timeout=10).strip() == "ok"

        wait("/readyz", ready, 60)
        if self.agent:
            # kubectl waits only for what is there.
            wait("the node", lambda: self.kubectl("get", "node", "box"))
            self.kubectl("wait", "--for=condition=Ready", "node/box", "--timeout=60s", timeout=70)
            wait("default service account", lambda: self.kubectl("get", "sa", "default"), 30)

    def kill(self):
        """As a pulled plug would: no goodbye."""
        self.server.send_signal(signal.SIGKILL)
        self.server.wait()
        self.log.close()

    def stop(self):
        self.server.send_signal(signal.SIGTERM)
        try:
            self.server.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure("the server did not stop within 30 s of SIGTERM") from None
        self.log.close()

    def cleanup(self):
        done = run(
            self.net.inside([self.isopod, "cleanup", "--yes", "--data-dir", self.data, "--cgroup-root", self.cgroup]),
            timeout=120,
        )
        return done.stdout

    def close(self):
        if self.server and self.server.poll() is None:
            with contextlib.suppress(Failure):
                self.stop()
        if self.starts:
            self.cleanup()
        if self.registry:
            self.registry.close()
        self.net.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def log_tail(self, lines=60):
        with open(f"{self.dir}/server.log", errors="replace") as f:
            return "".join(f.readlines()[-lines:])

    # -- registry

    def push(self, image, ref):
        """Pushes one of the test images under another name."""
        run(self.net.inside([sys.executable, f"{HERE}/images.py", self.registry.url, self.app, image, ref]))

    def image(self, ref):
        """The name under which pods use a test image: `busybox:1.36`."""
        return f"{REGISTRY}/{ref}"

    # -- processes

    def processes(self, container_id):
        """The processes of a container (an id as statuses have it), by the machine's own process ids, oldest first."""
        bare, found = container_id.split("://")[-1], []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            # It may end while it is looked at.
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/cgroup") as groups, open(f"/proc/{pid}/stat") as stat:
                    if bare in groups.read():
                        found.append((int(stat.read().rsplit(") ", 1)[1].split()[19]), int(pid)))
        return [pid for _, pid in sorted(found)]

    # -- kubectl

    def kubectl_args(self, *args, version=None, ns=None):
        binary = f"{self.tools}/kubectl-{version}" if version else f"{self.tools}/kubectl-1.37"
        where = ["-n", ns] if ns else []
        return self.net.inside([binary, "--kubeconfig", self.kubeconfig, *where, *args])

    def env(self):
        return dict(os.environ, HOME=self.dir, KUBECACHEDIR=f"{self.dir}/cache", KUBE_EDITOR=os.environ.get("KUBE_EDITOR", "true"))

    def kubectl(self, *args, input=None, check=True, timeout=60, version=None, ns=None, full=False, env=None):
        """Runs kubectl and returns stdout (or, with `full`, the whole result)."""
        environ = self.env() | (env or {})
        done = run(
            self.kubectl_args(*args, version=version, ns=ns), input=input, check=check, timeout=timeout, env=environ
        )
        return done if full else done.stdout

    def get(self, *args, ns=None):
        return json.loads(self.kubectl("get", *args, "-o", "json", ns=ns))

    def apply(self, *objects, ns=None):
        """Applies objects (dicts, or YAML text)."""
        text = "\n---\n".join(o if isinstance(o, str) else json.dumps(o) for o in objects)
        return self.kubectl("apply", "-f", "-", input=text, ns=ns)

    @contextlib.contextmanager
    def namespace(self, name):
        """A namespace for one test; its end is part of the test."""
        self.kubectl("create", "namespace", name)
        wait("service account", lambda: self.kubectl("get", "sa", "default", ns=name))
        try:
            yield name
        except BaseException:
            self.explain(name)
            raise
        self.kubectl("delete", "namespace", name, "--timeout=90s", timeout=100)

    def explain(self, ns):
        """Prints what helps to understand a failure."""
        for what in (["get", "all,events", "-o", "wide"], ["describe", "pods"]):
            done = self.kubectl(*what, ns=ns, check=False, full=True)
            print(f"--- kubectl {' '.join(what)} -n {ns}\n{done.stdout[-6000:]}{done.stderr[-500:]}")
        print(f"--- server log\n{self.log_tail()}")


def pod(name, image, command=None, **spec):
    """A pod with one container. `container=dict` adds to the container, `labels=dict` sets labels."""
    container = {"name": "main", "image": image, **spec.pop("container", {})}
    if command:
        container["command"] = command
    labels = spec.pop("labels", {"app": name})
    spec.setdefault("terminationGracePeriodSeconds", 1)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [container, *spec.pop("more", [])], **spec},
    }


def deployment(name, image, replicas, **container):
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "main", "image": image, **container}]},
            },
        },
    }
