"""`isopod server` on a real etcd: a start before it, an outage, a hang, who may come in, and two servers on one."""

import contextlib
import glob
import json
import os
import shutil
import signal
import subprocess
import time

from harness import HERE, Failure, deployment, run, wait
from test_datastore import certificates

URL, PEER = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
LEASES = ("kube-controller-manager", "kube-scheduler")


def program(tools):
    """The etcd that the oracle compares with; built if it was not yet."""
    if os.environ.get("ISOPOD_TEST_ETCD"):
        return os.environ["ISOPOD_TEST_ETCD"]
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "isopod/upstream")
    built = sorted(glob.glob(f"{cache}/*/etcd"))
    if not built:
        env = dict(os.environ, PATH=f"{tools}/bin:{os.environ['PATH']}")
        built = [run([f"{HERE}/oracle/upstream/build.sh", cache], timeout=3000, env=env).stdout.strip() + "/etcd"]
    return built[-1]


class Etcd:
    """One member in the node's namespace of a cluster."""

    def __init__(self, cluster):
        self.cluster, self.program, self.process = cluster, program(cluster.tools), None

    def start(self, *flags, url=URL):
        urls = ["--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", PEER, *flags]
        peers = ["--initial-advertise-peer-urls", PEER, "--initial-cluster", f"default={PEER}"]
        command = self.cluster.net.inside([self.program, "--data-dir", f"{self.cluster.dir}/etcd", *urls, *peers])
        env = dict(os.environ, ETCD_UNSUPPORTED_ARCH=os.uname().machine)
        with open(f"{self.cluster.dir}/etcd.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        return self

    def ctl(self, *args):
        return run(self.cluster.net.inside(["etcdctl", *args]), env=dict(os.environ, ETCDCTL_API="3")).stdout

    def signal(self, what):
        self.process.send_signal(what)

    def kill(self):
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def on_etcd(fresh, *server_args):
    """A cluster without a node, and its etcd; neither runs yet."""
    cluster = fresh(agent=False, server_args=server_args or ["--datastore-endpoint", URL])
    etcd = Etcd(cluster)
    try:
        yield cluster, etcd
    finally:
        if etcd.process and etcd.process.poll() is None:
            etcd.signal(signal.SIGCONT)
            if cluster.server and cluster.server.poll() is None:
                cluster.stop()
            etcd.kill()
        cluster.close()


def raw(cluster, path):
    """Code and body, without what kubectl makes of them: it asks again by itself."""
    done = run(cluster.net.inside([
        "curl", "-s", "-k", "-m", "30", "-w", "\n%{http_code} %header{retry-after}", *cluster.identity, f"https://127.0.0.1:6443{path}",
    ]))  # fmt: skip
    body, last = done.stdout.rsplit("\n", 1)
    code, _, retry = last.partition(" ")
    return int(code), retry, body


def identify(cluster):
    """Files for curl from the administrator's kubeconfig."""
    view = json.loads(cluster.kubectl("config", "view", "--raw", "-o", "json"))
    user = view["users"][0]["user"]
    for name in ("client-certificate", "client-key"):
        data = run(["base64", "-d"], input=user[f"{name}-data"]).stdout
        with open(f"{cluster.dir}/{name}", "w") as f:
            f.write(data)
    cluster.identity = ["--cert", f"{cluster.dir}/client-certificate", "--key", f"{cluster.dir}/client-key"]


class Watch:
    """`kubectl get --watch` of ConfigMaps: the names as they come."""

    def __init__(self, cluster):
        args = cluster.kubectl_args("get", "configmaps", "--watch", "-o", "name")
        self.out = open(f"{cluster.dir}/watch.log", "w+")
        self.process = subprocess.Popen(args, stdout=self.out, stderr=subprocess.DEVNULL, env=cluster.env())

    def names(self):
        with open(self.out.name) as f:
            return [line.strip().removeprefix("configmap/") for line in f]

    def close(self):
        self.process.kill()
        self.process.wait()
        self.out.close()


def test_a_server_waits_for_its_etcd_and_outlives_its_outages(fresh):
    with on_etcd(fresh) as (cluster, etcd):
        cluster.start(wait_ready=False)
        wait("the server to say that it waits", lambda: "Waiting for the datastore" in cluster.log_tail(), 20)
        assert URL in cluster.log_tail(), cluster.log_tail()
        etcd.start()
        cluster.wait_ready()
        identify(cluster)
        cluster.kubectl("create", "configmap", "one")
        assert "one" in cluster.kubectl("get", "configmaps", "-o", "name")
        # What is in etcd is etcd's own.
        keys = etcd.ctl("--endpoints", URL, "get", "/registry/configmaps/default/one", "--keys-only")
        assert keys.strip() == "/registry/configmaps/default/one", keys
        watch = Watch(cluster)
        try:
            wait("the watch", lambda: "one" in watch.names())
            for hang in (True, False):
                if hang:
                    etcd.signal(signal.SIGSTOP)
                else:
                    etcd.kill()
                began = time.monotonic()
                code, retry, body = raw(cluster, "/api/v1/namespaces/default/configmaps")
                assert (code, retry) == (503, "1") and json.loads(body)["reason"] == "ServiceUnavailable", (code, retry, body)
                assert time.monotonic() - began < 15, "an answer within a bounded time"
                code, _, body = raw(cluster, "/api/v1/namespaces/default/configmaps?resourceVersion=0")
                assert code == 200 and '"one"' in body, (code, body)
                code, _, body = raw(cluster, "/readyz")
                assert code == 500 and "[-]etcd failed" in body, (code, body)
                if hang:
                    etcd.signal(signal.SIGCONT)
                else:
                    etcd.start()
                wait("/readyz again", lambda: raw(cluster, "/readyz")[0] == 200, 30)
                name = "after-a-hang" if hang else "after-a-crash"
                cluster.kubectl("create", "configmap", name)
                wait("the same watch to see it", lambda: name in watch.names(), 20)
            assert len(watch.names()) == len(set(watch.names())), "each once"
        finally:
            watch.close()
        # Controllers work again.
        cluster.apply(deployment("web", "nothing", 2))
        wait("pods of the deployment", lambda: len(cluster.get("pods")["items"]) == 2, 60)
        assert cluster.server.poll() is None, cluster.log_tail()


def ended(cluster):
    """What a server says that does not start."""
    cluster.start(wait_ready=False)
    assert cluster.server.wait(30) != 0
    return cluster.log_tail(5)


def test_certificates_and_passwords(fresh):
    with on_etcd(fresh) as (cluster, etcd):
        certificates(cluster.dir)
        own = {"cafile": "ca.crt", "certfile": "client.crt", "keyfile": "client.key"}
        secure = ["--datastore-endpoint", "https://127.0.0.1:2379"]
        for flag, file in own.items():
            secure += [f"--datastore-{flag}", f"{cluster.dir}/{file}"]
        files = {"cert-file": "server.crt", "key-file": "server.key", "trusted-ca-file": "ca.crt"}
        tls = [f"--{flag}={cluster.dir}/{file}" for flag, file in files.items()]
        etcd.start(*tls, "--client-cert-auth", url=secure[1])
        cluster.server_args = secure
        cluster.start()
        cluster.kubectl("create", "configmap", "one")
        cluster.stop()
        etcd.kill()
        # The same data, now for who knows a password. It stands in a file that others cannot read.
        etcd.start()
        wait("etcd", lambda: etcd.ctl("--endpoints", URL, "user", "add", "root:s3cret/"), 20)
        etcd.ctl("--endpoints", URL, "user", "grant-role", "root", "root")
        etcd.ctl("--endpoints", URL, "auth", "enable")
        config = f"{cluster.dir}/config.yaml"
        cluster.server_args = ["--config", config]
        for password in ("wr0ng", "s3cret%2F"):
            with open(config, "w") as f:
                f.write(f"datastore-endpoint: http://root:{password}@127.0.0.1:2379\n")
            if password == "wr0ng":
                said = ended(cluster)
                assert '"root"' in said and "authentication failed" in said, said
            else:
                cluster.start()
        assert "one" in cluster.kubectl("get", "configmaps", "-o", "name")
        assert "wr0ng" not in cluster.log_tail() and "s3cret" not in cluster.log_tail(), cluster.log_tail()


def holders(ask):
    leases = json.loads(ask("get", "leases", "-n", "kube-system", "-o", "json"))["items"]
    return {lease["metadata"]["name"]: lease["spec"]["holderIdentity"] for lease in leases}


def test_two_servers_on_one_etcd(fresh):
    with on_etcd(fresh) as (cluster, etcd):
        etcd.start()
        cluster.start()
        # They must trust the same keys.
        shutil.copytree(f"{cluster.data}/server/tls", f"{cluster.dir}/second/server/tls")
        command = [
            cluster.isopod, "server", "--disable-agent", "--data-dir", f"{cluster.dir}/second", "--node-name", "second",
            "--write-kubeconfig", f"{cluster.dir}/kubeconfig-2", "--https-listen-port", "7443", "--datastore-endpoint", URL,
        ]  # fmt: skip
        with open(f"{cluster.dir}/second.log", "wb") as log:
            second = subprocess.Popen(cluster.net.inside(command), stdout=log, stderr=log)
        try:
            binary = f"{cluster.tools}/kubectl-1.37"
            there = cluster.net.inside([binary, "--kubeconfig", f"{cluster.dir}/kubeconfig-2"])
            other = lambda *a: run([*there, *a], env=cluster.env()).stdout  # noqa: E731
            wait("the second server", lambda: other("get", "--raw", "/readyz").strip() == "ok", 60)
            for n in range(5):
                cluster.kubectl("create", "configmap", f"here-{n}")
                other("get", "configmap", f"here-{n}")
                other("create", "configmap", f"there-{n}")
                cluster.kubectl("get", "configmap", f"there-{n}")
            assert cluster.kubectl("get", "configmaps", "-o", "name") == other("get", "configmaps", "-o", "name")
            first = holders(cluster.kubectl)
            assert all(first[lease].startswith("box_") for lease in LEASES), first
            # The leader dies; the other one takes over, and then there are controllers again.
            cluster.kill()
            wait("the second to lead", lambda: all(holders(other)[lease].startswith("second_") for lease in LEASES), 40)
            run([*there, "apply", "-f", "-"], input=json.dumps(deployment("web", "nothing", 2)), env=cluster.env())
            pods = lambda: json.loads(other("get", "pods", "-o", "json"))["items"]  # noqa: E731
            wait("pods of the deployment", lambda: len(pods()) == 2, 60)
            # One that stops in order gives its leases back.
            cluster.start()
            second.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert second.wait(30) == 0
            wait("the first to lead", lambda: all(holders(cluster.kubectl)[lease].startswith("box_") for lease in LEASES), 30)
            assert time.monotonic() - began < 14, "before the leases have expired"
        except Failure:
            with open(f"{cluster.dir}/second.log") as f:
                print(f"--- the second server\n{f.read()[-4000:]}\n--- the first\n{cluster.log_tail()}")
            raise
        finally:
            if second.poll() is None:
                second.kill()
                second.wait()
