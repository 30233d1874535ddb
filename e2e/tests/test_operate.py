"""Operating a server: what a refused start, a restart and a machine that lacks something do."""

import json
import os
import sqlite3
from datetime import datetime, timezone

from harness import Cluster, run, wait
from test_cleanup import TABLES

# Takes a table out of the kernel: NFT_MSG_DELTABLE between the beginning and the end of a batch.
DELETE_TABLE = r"""
import socket, struct, sys
name = sys.argv[1].encode() + b"\0"
message = lambda kind, family, res, attrs: struct.pack("=IHHIIBBH", 20 + len(attrs), kind, 5 if attrs else 1, 1, 0, family, 0, socket.htons(res)) + attrs
attr = struct.pack("=HH", 4 + len(name), 1) + name
attr += b"\0" * (-len(attr) % 4)
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.bind((0, 0))
s.send(message(16, 0, 10, b"") + message((10 << 8) | 2, 2, 0, attr) + message(17, 0, 10, b""))
error = struct.unpack_from("=i", s.recv(65536), 16)[0]
assert error == 0, error
"""


def refused(cluster: Cluster, *flags, before=()):
    """Runs a server that is expected to refuse; its message."""
    done = run(cluster.net.inside([*before, cluster.isopod, "server", *flags]), check=False, timeout=60)
    assert done.returncode != 0, done
    return done.stderr


def tables(cluster):
    return run(cluster.net.inside(["python3", "-c", TABLES])).stdout


def contents(top):
    """Every file below a directory, with its bytes."""
    found = {}
    for directory, _, names in os.walk(top):
        for name in names:
            with open(os.path.join(directory, name), "rb") as f:
                found[os.path.join(directory, name)] = f.read()
    return found


def test_a_refused_start_changes_nothing(fresh):
    cluster = fresh().start()
    try:
        mine = {cluster.kubeconfig: open(cluster.kubeconfig, "rb").read(), **contents(f"{cluster.data}/server/tls")}
        here = ["--write-kubeconfig", cluster.kubeconfig, "--node-name", "box"]
        other, group = ["--data-dir", f"{cluster.dir}/other"], ["--cgroup-root", f"{cluster.cgroup}-2"]
        ports = ["--https-listen-port", "7443", "--kubelet-port", "7444"]
        starts = [
            (["--data-dir", cluster.data, *group, *ports], [cluster.data, "in use"]),
            ([*other, *group], ["6443", "in use", "--https-listen-port"]),
            ([*other, *group, *ports[:2]], ["10250", "in use", "--kubelet-port"]),
            ([*other, *group, *ports], ["pod network", "in use"]),
            # No node, so nothing else is in its way.
            ([*other, *ports[:2], "--disable-agent"], [cluster.kubeconfig, "--write-kubeconfig"]),
        ]
        for store in ("sqlite", "memory"):
            for flags, words in starts:
                said = refused(cluster, *flags, *here, "--datastore-endpoint", store)
                assert all(w in said for w in words), f"{flags}: {said}"
                for path, data in mine.items():
                    assert open(path, "rb").read() == data, f"{path} after {flags}"
                assert cluster.kubectl("get", "--raw", "/readyz").strip() == "ok"
        assert not os.path.exists(f"/sys/fs/cgroup/memory{cluster.cgroup}-2"), "a refused start left its control group"

        cluster.stop()
        def version(number=None):
            with sqlite3.connect(f"{cluster.data}/server/db/state.db") as db:
                return db.execute(f"PRAGMA user_version = {number}" if number else "PRAGMA user_version").fetchone()

        (own,) = version()
        version(999)
        said = refused(cluster, "--data-dir", cluster.data, "--cgroup-root", cluster.cgroup, *here)
        assert "999" in said and "version" in said, said
        for path, data in mine.items():
            assert open(path, "rb").read() == data, path
        version(own)
        cluster.start()
    finally:
        cluster.close()


def test_node_ready_is_said_of_this_start(fresh):
    cluster = fresh().start()
    try:
        cluster.stop()
        run(cluster.net.inside(["python3", "-c", DELETE_TABLE, "isopod-proxy"]))
        assert "isopod-proxy" not in tables(cluster)
        began = datetime.now(timezone.utc)
        said_before = cluster.log_tail(10**6).count("Node ready")
        cluster.start(wait_ready=False)
        wait("Node ready", lambda: cluster.log_tail(10**6).count("Node ready") > said_before)
        assert "isopod-proxy" in tables(cluster), "the node was called ready without its service table"
        lease = cluster.get("lease", "box", ns="kube-node-lease")["spec"]["renewTime"]
        assert datetime.fromisoformat(lease.replace("Z", "+00:00")) >= began, f"{lease} is of before {began}"
    finally:
        cluster.close()


def test_a_machine_that_lacks_something(fresh):
    cluster = fresh()
    try:
        lacks = [
            ("-sys_admin", "overlay file system", "CONFIG_OVERLAY_FS"),
            ("-net_admin", "bridge and veth", "CONFIG_VETH"),
        ]
        flags = ["--data-dir", cluster.data, "--cgroup-root", cluster.cgroup, "--write-kubeconfig", cluster.kubeconfig]
        for capability, thing, remedy in lacks:
            less = ["setpriv", "--bounding-set", capability]
            said = refused(cluster, *flags, before=less)
            assert thing in said and remedy in said and "isopod check" in said, said
            assert not os.path.exists(cluster.kubeconfig), "written by a server that did not start"
            done = run(cluster.net.inside([*less, cluster.isopod, "check", "--data-dir", cluster.data]), check=False)
            missing = [line for line in done.stdout.splitlines() if line.startswith("MISSING")]
            assert done.returncode != 0 and any(thing in line for line in missing) and remedy in done.stdout, done
        # With everything there, the same start works.
        cluster.start()
    finally:
        cluster.close()


def test_a_bad_registries_file_is_named(cluster):
    path = f"{cluster.dir}/bad-registries.yaml"
    flags = ["--data-dir", f"{cluster.dir}/other", "--write-kubeconfig", f"{cluster.dir}/k2", "--private-registry", path]
    for text, word in (("mirror: {}\n", "mirror"), ("mirrors: [\n", "line"), (json.dumps({"configs": {"a": {"tls": {"insecure_skip_verfy": True}}}}), "insecure_skip_verfy")):
        with open(path, "w") as f:
            f.write(text)
        said = refused(cluster, *flags)
        assert path in said and word in said and "--private-registry" in said and "check" not in said, said


def test_a_node_with_too_little_disk_takes_no_pods(fresh):
    flags = ["--eviction-hard", "nodefs.available<1000Pi"]
    cluster = fresh(server_args=flags).start()
    try:
        cluster.kubectl("wait", "--for=condition=DiskPressure", "node/box", "--timeout=30s")
        assert "disk pressure" in cluster.log_tail() and "--eviction-hard" in cluster.log_tail(), cluster.log_tail()
        cluster.kubectl("run", "web", "--image", cluster.image("app:v1"))
        cluster.kubectl("wait", "--for=jsonpath={.status.conditions[0].reason}=Unschedulable", "pod/web", "--timeout=30s")
        said = cluster.get("pod", "web")["status"]["conditions"][0]["message"]
        assert "untolerated taint" in said, said
        taints = cluster.get("node", "box")["spec"]["taints"]
        assert [(t["key"], t["effect"]) for t in taints] == [("node.kubernetes.io/disk-pressure", "NoSchedule")], taints
        cluster.stop()
        said = refused(cluster, "--data-dir", cluster.data, "--eviction-hard", "nodefs.free<10%")
        assert "nodefs.free" in said and "nodefs.available" in said, said
    finally:
        cluster.close()
