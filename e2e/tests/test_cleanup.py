"""After `cleanup` the machine is as before."""

import os
import re
import subprocess

from harness import LITTLE_ROOM, NODE_IP, deployment, pod, run, wait


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
    # Everybody writes to /tmp: the server has a place of its own instead.
    for top in ("/run", "/var/lib", "/var/log", "/etc", f"{cluster.dir}/tmp"):
        names = [d for d in (os.listdir(top) if os.path.isdir(top) else []) if d == own or not d.startswith("isopod")]
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
        gone = {line for line in before - machine(cluster) if not line.startswith(("process", "mount"))}
        assert not gone, f"took away what was not its own: {gone}"
        cluster.starts = 0
    finally:
        cluster.close()


def test_cleanup_refuses_while_the_server_runs(fresh):
    for store in ("sqlite", "memory"):
        cluster = fresh(server_args=["--datastore-endpoint", store]).start()
        try:
            cluster.apply(pod("stays", cluster.image("app:v1")), ns="default")
            cluster.kubectl("wait", "--for=condition=Ready", "pod/stays", "--timeout=60s", timeout=70)
            started = cluster.get("pod", "stays")["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
            elsewhere, group = f"{cluster.dir}/elsewhere", cluster.cgroup
            attempts = [
                (cluster.net.inside, cluster.data, group),
                # The wrong directory: the group, or the network, tells.
                (cluster.net.inside, elsewhere, group),
                (cluster.net.inside, elsewhere, group + "-2"),
                (cluster.net.outside, elsewhere, group),
                (cluster.net.outside, elsewhere, group + "/burstable"),
            ]
            before = machine(cluster)
            for where, data, cgroup in attempts:
                command = [cluster.isopod, "cleanup", "--yes", "--data-dir", data, "--cgroup-root", cgroup]
                done = run(where(command), check=False)
                assert done.returncode != 0 and "running" in done.stderr and "in use" in done.stderr, (command, done)
                assert "removed" not in done.stdout, done
            gone = {line for line in before - machine(cluster) if line.startswith(("mount", "link", "table", "route", "cgroup"))}
            assert not gone, f"cleanup took from a running cluster: {gone}"
            status = cluster.get("pod", "stays")["status"]["containerStatuses"][0]
            assert status["restartCount"] == 0 and status["state"]["running"]["startedAt"] == started, status
        finally:
            cluster.close()


def test_cleanup_leaves_what_others_mounted(fresh):
    cluster = fresh()
    theirs = f"{cluster.data}/agent/theirs"
    mounted = []

    def bind(source, target):
        os.makedirs(source, exist_ok=True)
        os.makedirs(target, exist_ok=True)
        run(["mount", "--bind", source, target])
        mounted.append(target)

    try:
        # A disk of its own for the data directory, as on many small machines, and another one inside it.
        bind(f"{cluster.dir}/disk", cluster.data)
        bind(f"{cluster.dir}/disk2", theirs)
        with open(f"{theirs}/precious", "w") as f:
            f.write("kept")
        cluster.start()
        cluster.apply(pod("web", cluster.image("app:v1")), ns="default")
        cluster.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s", timeout=70)
        cluster.kill()
        said = cluster.cleanup()
        cluster.starts = 0
        with open("/proc/self/mountinfo") as f:
            places = [line.split()[4] for line in f]
        assert cluster.data in places and theirs in places, said
        assert open(f"{theirs}/precious").read() == "kept"
        assert f"left {cluster.data}" in said and f"left {theirs}" in said, said
        rest = [os.path.join(d, n) for d, _, names in os.walk(cluster.data) for n in names]
        assert rest == [f"{theirs}/precious"], f"data left behind: {rest}"
    finally:
        for target in reversed(mounted):
            run(["umount", target], check=False)
        cluster.close()


def test_cleanup_with_the_default_paths(fresh):
    """In a mount namespace where /etc, /run and /var/lib are this test's own."""
    cluster = fresh()
    place = {name: f"{cluster.dir}/{name}" for name in ("etc", "work", "run", "lib")}
    for directory in place.values():
        os.makedirs(directory)
    script = (
        f"mount -t overlay overlay -o lowerdir=/etc,upperdir={place['etc']},workdir={place['work']} /etc"
        f" && mount --bind {place['run']} /run && mount --bind {place['lib']} /var/lib && echo ready && exec sleep infinity"
    )
    holder = subprocess.Popen(
        cluster.net.inside(["unshare", "--mount", "--propagation", "private", "sh", "-c", script]),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    inside = lambda *a: ["nsenter", "-t", str(holder.pid), "-m", "-n", *map(str, a)]  # noqa: E731

    def files():
        found = {os.path.join(d, n) for top in ("etc", "run", "lib") for d, dirs, names in os.walk(place[top]) for n in dirs + names}
        # Where this machine has a directory of that name already, it is not ours to remove.
        return {f for f in found if not os.path.exists(f.removeprefix(cluster.dir)) or f.startswith((place["run"], place["lib"]))}

    server = None
    try:
        assert holder.stdout.readline() == "ready\n"
        before = files()
        group = ["--cgroup-root", cluster.cgroup]
        log = open(f"{cluster.dir}/server.log", "ab")
        command = [cluster.isopod, "server", "--node-name", "box", "--private-registry", f"{cluster.dir}/registries.yaml", *group]
        command += LITTLE_ROOM
        server = subprocess.Popen(inside(*command), stdout=log, stderr=log)
        wait("the node", lambda: "Node ready" in cluster.log_tail())
        kubectl = lambda *a: run(inside(f"{cluster.tools}/kubectl-1.37", "--kubeconfig", "/etc/isopod/isopod.yaml", *a), env=cluster.env())  # noqa: E731
        wait("service account", lambda: kubectl("get", "sa", "default"))
        kubectl("run", "web", "--image", cluster.image("app:v1"))
        kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
        for path in (f"{place['etc']}/isopod/isopod.yaml", f"{place['run']}/isopod", f"{place['lib']}/isopod/server/db"):
            assert os.path.exists(path), f"{path} is not there: {files()}"
        server.kill()
        server.wait()
        said = run(inside(cluster.isopod, "cleanup", "--yes", *group), timeout=120).stdout
        assert "/etc/isopod/isopod.yaml" in said, said
        assert files() == before, f"left behind: {files() - before}\n{said}"
    finally:
        if server and server.poll() is None:
            server.kill()
            server.wait()
            run(inside(cluster.isopod, "cleanup", "--yes", "--cgroup-root", cluster.cgroup), check=False, timeout=120)
        holder.kill()
        holder.wait()
        cluster.close()
