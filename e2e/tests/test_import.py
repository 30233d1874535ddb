"""`isopod datastore import`: what upstream's API server stored in a real kine, as k3s does, is taken over by upstream's API server
on our datastore, and by our own."""

import base64
import json
import os
import signal
import subprocess

from harness import HERE, deployment, run, wait
from test_backup import isopod
from test_datastore import Datastore, Watcher, certificates

PORT = 7443
NAMESPACE = "shop"
KINDS = "configmaps,secrets,services,deployments,cronjobs,horizontalpodautoscalers,ingresses,serviceaccounts,pods,gadgets"
WORLD = "namespaces,customresourcedefinitions,clusterroles,priorityclasses,storageclasses,ipaddresses"


def built(script, tools):
    """Where a build script has put its programs; `None`, and a line that says so, where Go cannot build them."""
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "isopod/upstream")
    done = run(["sh", os.path.join(HERE, script), cache], check=False, timeout=1800, env=dict(os.environ, PATH=f"{tools}/bin:{os.environ['PATH']}"))
    if done.returncode == 0:
        return done.stdout.strip()
    print(f"SKIPPED, NOT TESTED: an import, because {script} failed:\n{done.stderr[-2000:]}")
    return None


class Programs:
    """kine and upstream's API server, in the node's namespace of a cluster that is started later."""

    def __init__(self, cluster, kine, upstream):
        self.cluster, self.dir, self.kine, self.upstream, self.running = cluster, cluster.dir, kine, upstream, []
        certificates(self.dir)
        run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{self.dir}/sa.key"])
        run(["openssl", "ec", "-in", f"{self.dir}/sa.key", "-pubout", "-out", f"{self.dir}/sa.pub"])
        with open(f"{self.dir}/tokens", "w") as f:
            f.write("secret,admin,1,system:masters\n")
        self.kubeconfig = f"{self.dir}/upstream-kubeconfig"
        with open(self.kubeconfig, "w") as f:
            json.dump({
                "apiVersion": "v1", "kind": "Config", "current-context": "x",
                "clusters": [{"name": "x", "cluster": {"server": f"https://127.0.0.1:{PORT}", "insecure-skip-tls-verify": True}}],
                "users": [{"name": "x", "user": {"token": "secret"}}],
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            }, f)  # fmt: skip

    def start(self, name, *args):
        with open(f"{self.dir}/{name}.log", "ab") as log:
            process = subprocess.Popen(self.cluster.net.inside(args), stdout=log, stderr=log, cwd=self.dir)
        self.running.append(process)
        return process

    def start_kine(self, database):
        # Compacts soon and keeps little, so that the history does not begin at its beginning.
        small = ["--compact-interval=2s", "--compact-min-retain=100", "--compact-batch-size=100"]
        endpoint = f"sqlite://{database}?_journal=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate"
        return self.start("kine", f"{self.kine}/kine", "--endpoint", endpoint, "--listen-address", "127.0.0.1:2379", "--metrics-bind-address=0", *small)

    def start_api(self):
        process = self.start(
            "kube-apiserver", f"{self.upstream}/kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=127.0.0.1", f"--secure-port={PORT}", "--advertise-address=192.0.2.10", f"--cert-dir={self.dir}",
            f"--tls-cert-file={self.dir}/server.crt", f"--tls-private-key-file={self.dir}/server.key",
            f"--token-auth-file={self.dir}/tokens", "--authorization-mode=RBAC", "--service-cluster-ip-range=10.43.0.0/16",
            "--disable-admission-plugins=ServiceAccount", "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={self.dir}/sa.pub", f"--service-account-signing-key-file={self.dir}/sa.key",
        )  # fmt: skip

        def ready():
            if process.poll() is not None:
                with open(f"{self.dir}/kube-apiserver.log") as f:
                    raise SystemExit(f"kube-apiserver ended with {process.returncode}:\n{f.read()[-3000:]}")
            return self.kubectl("get", "--raw", "/readyz") == "ok"

        wait("kube-apiserver", ready, 120, 0.5)
        return process

    def stop(self, process):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self):
        for process in reversed(self.running):
            if process.poll() is None:
                self.stop(process)

    def kubectl(self, *args, **kw):
        own, self.cluster.kubeconfig = self.cluster.kubeconfig, self.kubeconfig
        try:
            return self.cluster.kubectl(*args, **kw)
        finally:
            self.cluster.kubeconfig = own


def objects(kubectl):
    """Everything that both servers must show alike, by kind and name. What every API server keeps up to date itself is not
    looked at."""
    found = {}
    for kinds, where in ((KINDS, ["-n", NAMESPACE]), (WORLD, [])):
        for item in json.loads(kubectl("get", kinds, *where, "-o", "json", "--show-managed-fields"))["items"]:
            labels = item["metadata"].get("labels", {})
            if "kubernetes.io/bootstrapping" not in labels:
                found[f"{item['kind']}/{item['metadata']['name']}"] = item
    assert len(found) > 25, list(found)
    return found


CRD = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "gadgets.example.com"},
    "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget"},
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}}}]},
}  # fmt: skip


def service(name, port, node_port):
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "NodePort", "selector": {"app": name}, "ports": [{"port": port, "nodePort": node_port}]}}  # fmt: skip


def fill(p):
    """Objects of many kinds, and more history than kine keeps."""
    p.kubectl("create", "namespace", NAMESPACE)
    everything = [
        deployment("web", "nginx", 3), service("web", 80, 30080), service("db", 5432, 30432),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"password": "geheim"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "binary"}, "binaryData": {"b": "AAEC/w=="}, "immutable": True},
        {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "night"}, "spec": {"schedule": "0 3 * * *", "jobTemplate": {
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox"}]}}}}}},
        {"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"}, "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "maxReplicas": 5, "targetCPUUtilizationPercentage": 70}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "web"}, "spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "alone", "annotations": {"note": "ü"}}, "spec": {
            "containers": [{"name": "c", "image": "busybox", "resources": {"limits": {"memory": "64Mi", "cpu": "0.5"}}}], "nodeName": "elsewhere"}},
    ]  # fmt: skip
    p.kubectl("apply", "-n", NAMESPACE, "--server-side", "-f", "-", input="\n---\n".join(map(json.dumps, everything)))
    world = [CRD, {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 1000}]
    p.kubectl("apply", "-f", "-", input="\n---\n".join(map(json.dumps, world)))
    p.kubectl("wait", "--for=condition=Established", "crd/gadgets.example.com")
    gadget = {"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "g"}, "spec": {"x": 1.5, "list": [1, {"a": None}], "big": 9007199254740993}}
    wait("gadgets", lambda: p.kubectl("apply", "-n", NAMESPACE, "-f", "-", input=json.dumps(gadget)))
    many = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"many-{i}"}, "data": {"i": str(i)}} for i in range(150)]
    p.kubectl("create", "-n", NAMESPACE, "-f", "-", input="\n---\n".join(map(json.dumps, many)))
    p.kubectl("delete", "-n", NAMESPACE, "configmap", *[f"many-{i}" for i in range(140)])
    for i in range(5):
        p.kubectl("patch", "-n", NAMESPACE, "configmap", "many-145", "-p", json.dumps({"data": {"i": f"changed {i}"}}))
        p.kubectl("create", "-n", NAMESPACE, "configmap", f"late-{i}")
    p.kubectl("delete", "-n", NAMESPACE, "configmap", "late-1")


def stored(d):
    """Every key as an etcd client sees it. Leases of minutes, and what lives by them, end meanwhile; kine counts no versions."""
    kvs = d.json("get", "/registry/", "--prefix")["kvs"]
    passing = (b"/registry/events/", b"/registry/masterleases/", b"/registry/leases/")
    kept = [kv for kv in kvs if not base64.b64decode(kv["key"]).startswith(passing)]
    return {kv["key"]: (kv["value"], kv["create_revision"], kv["mod_revision"], kv.get("lease", 0)) for kv in kept}


def test_k3s_state_is_taken_over(fresh):
    c = fresh(agent=False)
    kine, upstream = built("bench-store/kine/build.sh", c.tools), built("oracle/upstream/build.sh", c.tools)
    if not (kine and upstream):
        c.close()
        return
    p = Programs(c, kine, upstream)
    d = Datastore(c, tls=False)
    database = f"{c.dir}/k3s/state.db"
    os.mkdir(f"{c.dir}/k3s")
    source = f"sqlite://{database}"
    try:
        engine = p.start_kine(database)
        wait("kine", lambda: d.ctl("get", "x", full=True).returncode == 0)
        api = p.start_api()
        fill(p)
        want = objects(p.kubectl)
        changed = json.loads(p.kubectl("get", "configmap", "many-145", "-n", NAMESPACE, "-o", "json"))
        p.stop(api)
        everything = stored(d)
        # kine runs on, as k3s may: what is read is one moment.
        for purpose, data in (("kube-apiserver", f"{c.dir}/data"), ("isopod", f"{c.dir}/ours")):
            said = isopod(c, "datastore", "import", "--from", source, "--data-dir", data, "--for", purpose).stdout
            assert "does not fit" not in said, said
        assert "objects taken over" in said and "left behind: " in said, said
        again = isopod(c, "datastore", "import", "--from", source, "--data-dir", f"{c.dir}/data", check=False)
        assert again.returncode != 0 and "--force" in again.stderr, again
        p.stop(engine)
        upstreams_server_goes_on(p, d, everything, want, changed)
        ours_goes_on(c, want)
    finally:
        if d.process and d.process.poll() is None:
            d.stop()
        p.close()
        c.close()


def upstreams_server_goes_on(p, d, everything, want, changed):
    d.start()
    found = stored(d)
    wrong = {k: (v, found.get(k)) for k, v in everything.items() if found.get(k) != v}
    assert not wrong and len(found) == len(everything), list(wrong.items())[:3]
    # The history since kine's compaction is there, and what was before it is told to be gone.
    last = int(changed["metadata"]["resourceVersion"])
    history = Watcher(d, f"/registry/configmaps/{NAMESPACE}/late-1", f"--rev={last - 20}", "-w", "fields")
    try:
        kinds = lambda: [line for line in history.lines if line.startswith('"Type"')]  # noqa: E731
        wait("history", lambda: kinds() == ['"Type" : PUT', '"Type" : DELETE'], 20)
    finally:
        history.close()
    old = run(d.args("watch", "/registry/configmaps/", "--prefix", "--rev=3"), check=False, env=dict(os.environ, ETCDCTL_API="3"))
    assert "compacted" in old.stdout + old.stderr, "kine has compacted, and so the import begins later"
    api = p.start_api()
    same(objects(p.kubectl), want)
    p.kubectl("patch", "-n", NAMESPACE, "configmap", "many-145", "-p", '{"data": {"i": "on isopod"}}')
    p.kubectl("delete", "-n", NAMESPACE, "configmap", "many-146")
    p.stop(api)
    d.stop()


def ours_goes_on(c, want):
    c.data = f"{c.dir}/ours"
    # First nobody writes, so that everything can be compared.
    c.server_args = ["--disable-controller-manager", "--disable-scheduler"]
    c.start()
    same(objects(c.kubectl), want)
    c.stop()
    c.server_args = []
    c.start()
    taken = c.kubectl("apply", "-n", NAMESPACE, "-f", "-", input=json.dumps(service("thief", 1, 30080)), check=False, full=True)
    assert "provided port is already allocated" in taken.stderr, taken
    address = want["Service/db"]["spec"]["clusterIP"]
    thief = {**service("thief", 1, 30081), "spec": {"clusterIP": address, "ports": [{"port": 1}]}}
    taken = c.kubectl("apply", "-n", NAMESPACE, "-f", "-", input=json.dumps(thief), check=False, full=True)
    assert "provided IP is already allocated" in taken.stderr, taken
    c.kubectl("patch", "-n", NAMESPACE, "gadget", "g", "--type=merge", "-p", '{"spec": {"x": 2}}')
    c.kubectl("scale", "-n", NAMESPACE, "deployment", "web", "--replicas=1")
    c.kubectl("delete", "-n", NAMESPACE, "service", "web", "--timeout=20s")
    c.kubectl("apply", "-n", NAMESPACE, "-f", "-", input=json.dumps(service("next", 1, 30080)))
    assert c.get("secret", "s", ns=NAMESPACE)["data"] == want["Secret/s"]["data"]


def same(found, want):
    """The same objects at the same revisions, to the last field."""
    missing = [k for k in want if k not in found]
    assert not missing, missing
    for name, object in want.items():
        assert found[name] == object, f"{name}:\n{json.dumps(found[name], sort_keys=True)}\n{json.dumps(object, sort_keys=True)}"


def test_snapshots_of_etcd_are_taken_over(fresh):
    c = fresh(agent=False)
    upstream = built("oracle/upstream/build.sh", c.tools)
    if not upstream:
        c.close()
        return
    d = Datastore(c, tls=False)
    process = None
    try:
        peer = ["--listen-peer-urls", "http://127.0.0.1:2380"]
        etcd = c.net.inside([f"{upstream}/etcd", "--data-dir", f"{c.dir}/etcd", "--listen-client-urls", d.url(), "--advertise-client-urls", d.url(), *peer])
        with open(f"{c.dir}/etcd.log", "wb") as log:
            process = subprocess.Popen(etcd, stdout=log, stderr=log, env=dict(os.environ, ETCD_UNSUPPORTED_ARCH=os.uname().machine))
        wait("etcd", lambda: d.ctl("endpoint", "health", full=True).returncode == 0, 30)
        lease = d.ctl("lease", "grant", "6000").split()[1]
        d.ctl("put", "leased", "1", f"--lease={lease}")
        d.ctl("put", "large", input="x" * 20_000)
        for n in range(12):
            puts = "\n".join(f"put k/{i:03} {n}-{'v' * 50}" for i in range(n, 128))
            d.ctl("txn", input=f"\n{puts}\n\n\n")
        d.ctl("del", "k/00", "--prefix")
        now = d.json("get", "x")["header"]["revision"]
        d.ctl("compact", str(now - 3), "--physical")
        d.ctl("put", "last", "1")
        snapshot = f"{c.dir}/snapshot.db"
        d.ctl("snapshot", "save", snapshot)
        everything = lambda: d.json("get", "", "--prefix")["kvs"]  # noqa: E731
        old = lambda: d.json("get", "k/", "--prefix", f"--rev={now - 2}")["kvs"]  # noqa: E731
        history = lambda: {k: v for k, v in json.loads(d.ctl("endpoint", "hashkv", "-w", "json", endpoint="127.0.0.1:2379"))[0]["HashKV"].items() if k != "header"}  # noqa: E731
        want = everything(), old(), history()
        # A cluster whose datastore is an etcd is backed up through its API.
        live = f"{c.dir}/live.isopod"
        made = isopod(c, "backup", "--data-dir", c.data, "--datastore-endpoint", d.url(), "--output", live).stdout
        assert f"revision {now + 1}, 121 keys" in made, made
        process.terminate()
        process.wait(30)
        for source in (snapshot, f"{c.dir}/etcd/member/snap/db"):
            said = isopod(c, "datastore", "import", "--for", "kube-apiserver", "--force", "--from", f"etcd-snapshot://{source}", "--data-dir", c.data).stdout
            assert f"at revision {now + 1}: 121 keys" in said, said
            d.start()
            assert (everything(), old(), history()) == want, source
            assert "leased" in d.ctl("lease", "timetolive", "--keys", lease)
            gone = d.ctl("get", "k/", f"--rev={now - 4}", check=False, full=True)
            assert "compacted" in gone.stderr, gone
            d.stop()
        isopod(c, "restore", live, "--data-dir", c.data, "--force", "--bump-revision", "0")
        d.start()
        assert everything() == want[0]
        assert "leased" in d.ctl("lease", "timetolive", "--keys", lease)
        d.stop()
        with open(snapshot, "r+b") as f:
            f.seek(os.path.getsize(snapshot) // 2)
            f.write(b"changed")
        refused = isopod(c, "datastore", "import", "--from", f"etcd-snapshot://{snapshot}", "--data-dir", f"{c.dir}/none", check=False)
        assert refused.returncode != 0 and "SHA-256" in refused.stderr and not os.path.exists(f"{c.dir}/none"), refused
    finally:
        for running in (process, d.process):
            if running and running.poll() is None:
                running.kill()
                running.wait()
        c.close()
