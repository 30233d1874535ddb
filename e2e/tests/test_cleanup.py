"""After `cleanup` the machine is as before."""

import os
import re

from harness import NODE_IP, deployment, run, wait


# Names of the nftables tables, asked of the kernel: NFT_MSG_GETTABLE as a dump, attribute 1 of each answer.
TABLES = r"""
import socket, struct
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.bind((0, 0))
s.send(struct.pack("=IHHIIBBH", 20, (10 << 8) | 1, 0x301, 1, 0, 0, 0, 0))
while True:
    data = s.recv(65536)
    while data:
        size, kind = struct.unpack_from("=IH", data)
        if kind == 3:
            raise SystemExit
        attrs = data[20:size]
        while attrs:
            n, what = struct.unpack_from("=HH", attrs)
            if what & 0x7fff == 1:
                print(data[16], attrs[4:n].rstrip(b"\\0").decode())
            attrs = attrs[(n + 3) & ~3:]
        data = data[(size + 3) & ~3:]
"""


def fnv1a(text):
    """The name of a cluster's directory in /run holds this hash of its data directory."""
    h = 0x811C9DC5
    for b in text.encode():
        h = (h ^ b) * 0x01000193 & 0xFFFFFFFF
    return h


def machine(cluster):
    """Everything that a cluster may leave behind, as text lines."""
    found = set()
    with open("/proc/self/mountinfo") as f:
        places = [line.split()[4] for line in f]
    found |= {"mount " + p for p in places if cluster.data in p or "isopod" not in p and "/netns/" not in p}
    inside = lambda *a: run(cluster.net.inside(a)).stdout  # noqa: E731
    found |= {"link " + re.split(r"[:@]", line)[1].strip() for line in inside("ip", "-o", "link").splitlines()}
    found |= {"table " + line for line in inside("python3", "-c", TABLES).splitlines()}
    found |= {"route " + line.strip() for line in inside("ip", "route", "show", "table", "all").splitlines()}
    found |= {"rule " + line.strip() for line in inside("ip", "rule").splitlines()}
    for top, dirs, _ in os.walk("/sys/fs/cgroup"):
        # Other clusters run side by side: theirs come and go.
        dirs[:] = [d for d in dirs if not d.startswith("isopod") or d == cluster.cgroup[1:]]
        found |= {f"cgroup {top}/{d}" for d in dirs}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f, open(f"/proc/{pid}/cgroup") as g:
                command, groups = f.read().replace(b"\0", b" ").decode(errors="replace").strip(), g.read()
        except OSError:
            continue
        # An empty one is dead already: its parent has not looked yet.
        if command and cluster.cgroup in groups or (cluster.data in command and " cleanup " not in command):
            found.add(f"process {command}")
    own = f"isopod-{fnv1a(cluster.data):08x}"
    for top in ("/run", "/var/lib", "/var/log", "/etc", "/tmp"):
        names = [d for d in os.listdir(top) if d == own or not d.startswith("isopod")]
        found |= {f"directory {top}/{d}" for d in names}
    return found


def test_cleanup_leaves_the_machine_as_before(fresh):
    cluster = fresh()
    try:
        before = machine(cluster)
        cluster.start()
        cluster.apply(deployment("web", cluster.image("app:v1"), 3, ports=[{"containerPort": 8080}]), ns="default")
        cluster.kubectl("expose", "deployment", "web", "--port=80", "--target-port=8080", "--type=NodePort")
        cluster.kubectl("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
        port = cluster.get("service", "web")["spec"]["ports"][0]["nodePort"]
        wait("node port", lambda: run(cluster.net.outside(["curl", "-sS", "--max-time", "5", f"http://{NODE_IP}:{port}/"])).stdout)
        grown = machine(cluster) - before
        for kind in ("mount", "link", "table", "route", "cgroup", "process", "directory /run"):
            assert any(line.startswith(kind) for line in grown), f"a running cluster shows no {kind}: {grown}"
        # The server is gone without a word: cleanup must find everything by itself.
        cluster.kill()
        said = cluster.cleanup()
        left = machine(cluster) - before
        assert not left, f"left behind: {sorted(left)}\ncleanup said: {said}"
        assert not os.path.exists(cluster.data), "the data directory is there"
        gone = {line for line in before - machine(cluster) if not line.startswith(("process", "mount", "directory /tmp"))}
        assert not gone, f"took away what was not its own: {gone}"
        cluster.starts = 0
    finally:
        cluster.close()


def test_cleanup_refuses_while_the_server_runs(fresh):
    cluster = fresh().start()
    try:
        done = run(cluster.net.inside([cluster.isopod, "cleanup", "--yes", "--data-dir", cluster.data, "--cgroup-root", cluster.cgroup]), check=False)
        assert done.returncode != 0 and "running" in done.stderr, done
        assert cluster.kubectl("get", "--raw", "/readyz").strip() == "ok"
    finally:
        cluster.close()
