"""`isopod datastore` with stock etcdctl: every command that people type, over TLS with client certificates, through a restart."""

import contextlib
import json
import os
import signal
import subprocess
import threading

from harness import Failure, run, wait

PORT = 2379


class Datastore:
    """One datastore in the node's namespace of a cluster that is never started."""

    def __init__(self, cluster, tls=True):
        self.cluster, self.dir, self.tls, self.process = cluster, cluster.dir, tls, None
        self.socket = f"{self.dir}/etcd.sock"
        if tls:
            certificates(self.dir)

    def url(self):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{PORT}"

    def start(self, *flags):
        files = {"cert-file": "server.crt", "key-file": "server.key", "trusted-ca-file": "ca.crt"} if self.tls else {}
        args = [f"--{k}={self.dir}/{v}" for k, v in files.items()]
        urls = f"{self.url()},unix://{self.socket}"
        command = [self.cluster.isopod, "datastore", "--data-dir", f"{self.dir}/data", "--listen-client-urls", urls, *args, *flags]
        with open(f"{self.dir}/datastore.log", "ab") as log:
            self.process = subprocess.Popen(self.cluster.net.inside(command), stdout=log, stderr=log)

        def ready():
            if self.process.poll() is not None:
                with open(f"{self.dir}/datastore.log") as f:
                    raise SystemExit(f"the datastore ended with {self.process.returncode}:\n{f.read()}")
            return self.ctl("endpoint", "health", full=True).returncode == 0

        wait("the datastore", ready, 30)
        return self

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failure("the datastore did not stop within 20 s") from None

    def args(self, *args, endpoint=None, certified=True):
        tls = []
        if self.tls and endpoint is None:
            tls = [f"--cacert={self.dir}/ca.crt"]
            if certified:
                tls += [f"--cert={self.dir}/client.crt", f"--key={self.dir}/client.key"]
        return self.cluster.net.inside(["etcdctl", f"--endpoints={endpoint or self.url()}", *tls, *args])

    def ctl(self, *args, input=None, check=True, full=False, **kw):
        done = run(self.args(*args, **kw), input=input, check=check, env=dict(os.environ, ETCDCTL_API="3"))
        return done if full else done.stdout

    def json(self, *args):
        return json.loads(self.ctl(*args, "-w", "json"))


def certificates(folder):
    """A CA, what the server shows and what clients show."""
    at = lambda name: os.path.join(folder, name)  # noqa: E731
    new = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    ca = [*new, "-x509", "-days", "2", "-subj", "/CN=test", "-keyout", at("ca.key"), "-out", at("ca.crt")]
    run([*ca, "-addext", "keyUsage=critical,keyCertSign"])
    for name, use in (("server", "serverAuth"), ("client", "clientAuth")):
        run([*new, "-subj", f"/CN={name}", "-keyout", at(f"{name}.key"), "-out", at(f"{name}.csr")])
        with open(at("ext"), "w") as f:
            f.write(f"subjectAltName=IP:127.0.0.1\nextendedKeyUsage={use}\n")
        sign = ["openssl", "x509", "-req", "-days", "2", "-in", at(f"{name}.csr"), "-CA", at("ca.crt"), "-CAkey", at("ca.key")]
        run([*sign, "-CAcreateserial", "-extfile", at("ext"), "-out", at(f"{name}.crt")])


@contextlib.contextmanager
def datastore(fresh, *flags, tls=True):
    cluster = fresh(agent=False)
    store = Datastore(cluster, tls)
    try:
        yield store.start(*flags)
    finally:
        if store.process and store.process.poll() is None:
            store.stop()
        cluster.close()


class Watcher:
    """A running `etcdctl watch`; its lines as they come."""

    def __init__(self, store, *args):
        env = dict(os.environ, ETCDCTL_API="3")
        self.process = subprocess.Popen(store.args("watch", *args), stdout=subprocess.PIPE, text=True, env=env)
        self.lines = []
        threading.Thread(target=lambda: self.lines.extend(line.strip() for line in self.process.stdout), daemon=True).start()

    def expect(self, *lines):
        wait(f"the watch to say {lines}", lambda: self.lines[: len(lines)] == list(lines) or (_ for _ in ()).throw(Failure(str(self.lines))), 20)
        del self.lines[: len(lines)]

    def close(self):
        self.process.kill()
        self.process.wait()


def test_keys_and_transactions(fresh):
    with datastore(fresh) as d:
        assert d.ctl("put", "a", "1") == "OK\n"
        assert d.ctl("put", "b", "2", "--prev-kv") == "OK\n"
        assert d.ctl("get", "a") == "a\n1\n"
        assert d.ctl("put", "a", "3", "--prev-kv") == "OK\na\n1\n"
        assert d.ctl("get", "", "--prefix", "--keys-only").split() == ["a", "b"]
        assert d.ctl("get", "a", "z", "--order=DESCEND", "--sort-by=KEY", "--print-value-only").split() == ["2", "3"]
        assert d.ctl("get", "a", "--rev=2", "--print-value-only") == "1\n"
        got = d.json("get", "a")
        assert got["kvs"][0]["version"] == 2 and got["header"]["revision"] == 4, got
        txn = d.ctl("txn", input='ver("a") = "2"\nval("b") > "1"\n\nput c yes\nget a\n\nput c no\n\n')
        assert txn.startswith("SUCCESS") and "a\n3\n" in txn, txn
        assert d.ctl("get", "c", "--print-value-only") == "yes\n"
        txn = d.ctl("txn", input='create("none") != "0"\n\nput c 1\n\ndel c\n\n')
        assert txn.startswith("FAILURE") and "1" in txn, txn
        assert d.ctl("del", "a", "--prev-kv") == "1\na\n3\n"
        assert d.ctl("del", "", "--prefix") == "1\n"
        wrong = d.ctl("get", "a", "--rev=999", check=False, full=True)
        assert wrong.returncode != 0 and "required revision is a future revision" in wrong.stderr, wrong
        large = d.ctl("put", "large", input="x" * 1_600_000, check=False, full=True)
        assert "request is too large" in large.stderr, large.stderr[-300:]


def test_watches_leases_and_compaction(fresh):
    with datastore(fresh) as d:
        first = Watcher(d, "w/", "--prefix", "--prev-kv")
        try:
            # The watch has begun when it sees a first write.
            wait("the watch", lambda: d.ctl("put", "w/begin", "0") and first.lines)
            lease = d.ctl("lease", "grant", "600").split()[1]
            last = d.json("put", "w/a", "1", f"--lease={lease}")["header"]["revision"]
            wait("the put", lambda: first.lines[-3:] == ["PUT", "w/a", "1"])
            assert "remaining" in d.ctl("lease", "timetolive", lease)
            assert "w/a" in d.ctl("lease", "timetolive", "--keys", lease)
            assert lease in d.ctl("lease", "list")
            assert "keepalived with TTL(600)" in d.ctl("lease", "keep-alive", "--once", lease)
            assert "revoked" in d.ctl("lease", "revoke", lease)
            wait("the end of the lease", lambda: "DELETE" in first.lines)
            assert d.ctl("get", "w/a") == ""
        finally:
            first.close()
        short = d.ctl("lease", "grant", "2").split()[1]
        d.ctl("put", "short", "x", f"--lease={short}")
        wait("the lease to end", lambda: d.ctl("get", "short") == "", 20)
        past = Watcher(d, "w/a", f"--rev={last}")
        try:
            past.expect("PUT", "w/a", "1", "DELETE", "w/a", "")
        finally:
            past.close()
        now = d.json("get", "x")["header"]["revision"]
        assert f"compacted revision {now}" in d.ctl("compact", str(now), "--physical")
        old = d.ctl("get", "w/a", f"--rev={last}", check=False, full=True)
        assert "required revision has been compacted" in old.stderr, old
        done = run(d.args("watch", "w/a", f"--rev={last}"), check=False, env=dict(os.environ, ETCDCTL_API="3"))
        assert "required revision has been compacted" in done.stdout + done.stderr, done


def test_maintenance(fresh):
    with datastore(fresh, "--name", "box", "--quota-backend-bytes", str(4 << 20)) as d:
        member = d.json("member", "list")["members"]
        assert len(member) == 1 and member[0]["name"] == "box" and d.url() in member[0]["clientURLs"], member
        status = d.json("endpoint", "status")[0]["Status"]
        assert status["leader"] == status["header"]["member_id"] and status["dbSize"] > 0, status
        before = d.json("endpoint", "hashkv")[0]["HashKV"]["hash"]
        d.ctl("put", "k", "v")
        assert d.json("endpoint", "hashkv")[0]["HashKV"]["hash"] != before
        for n in range(20):
            done = d.ctl("put", f"q{n}", input="x" * 1_000_000, check=False, full=True)
            if done.returncode:
                break
        assert "database space exceeded" in done.stderr, done.stderr[-300:]
        assert "alarm:NOSPACE" in d.ctl("alarm", "list")
        d.ctl("del", "q", "--prefix")
        d.ctl("compact", str(d.json("get", "x")["header"]["revision"]), "--physical")
        assert "Finished defragmenting" in d.ctl("defrag")
        d.ctl("alarm", "disarm")
        assert d.ctl("put", "k", "again") == "OK\n" and d.ctl("alarm", "list") == ""
        auth = d.ctl("auth", "enable", check=False, full=True)
        assert auth.returncode != 0 and "root user does not exist" in auth.stderr, auth
        d.ctl("user", "add", "root:secret")
        d.ctl("user", "grant-role", "root", "root")
        d.ctl("auth", "enable")
        assert "user name is empty" in d.ctl("get", "k", check=False, full=True).stderr
        assert d.ctl("--user", "root:secret", "get", "k", "--print-value-only") == "again\n"
        wrong = d.ctl("--user", "root:wrong", "get", "k", check=False, full=True)
        assert "authentication failed, invalid user ID or password" in wrong.stderr, wrong
        d.ctl("--user", "root:secret", "auth", "disable")
        assert d.ctl("get", "k", "--print-value-only") == "again\n"


def test_a_snapshot_becomes_a_real_etcd(fresh):
    with datastore(fresh) as d:
        # Enough for several levels of pages; history, deletions, a lease, values longer than a page.
        d.ctl("put", "large", input="x" * 20_000)
        lease = d.ctl("lease", "grant", "6000").split()[1]
        d.ctl("put", "leased", "1", f"--lease={lease}")
        for n in range(12):
            puts = "\n".join(f"put k/{i:03} {n}-{'v' * 50}" for i in range(n, 128))
            d.ctl("txn", input=f"\n{puts}\n\n\n")
        d.ctl("del", "k/00", "--prefix")
        now = d.json("get", "x")["header"]["revision"]
        d.ctl("compact", str(now - 3), "--physical")
        d.ctl("put", "last", "1")
        file = f"{d.dir}/snapshot.db"
        assert "Snapshot saved" in d.ctl("snapshot", "save", file)
        assert d.json("snapshot", "status", file)["revision"] == now + 1
        peer, client = "http://127.0.0.1:2390", "http://127.0.0.1:2389"
        cluster = ["--name", "real", "--initial-cluster", f"real={peer}", "--initial-advertise-peer-urls", peer]
        d.ctl("snapshot", "restore", file, "--data-dir", f"{d.dir}/real", *cluster)
        listen = ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        etcd = d.cluster.net.inside(["etcd", "--data-dir", f"{d.dir}/real", *cluster, *listen])
        with open(f"{d.dir}/real.log", "wb") as log:
            process = subprocess.Popen(etcd, stdout=log, stderr=log, env=dict(os.environ, ETCD_UNSUPPORTED_ARCH=os.uname().machine))
        try:
            ask = lambda *a: json.loads(d.ctl(*a, "-w", "json", endpoint=client))  # noqa: E731
            wait("etcd", lambda: ask("get", "last")["count"] == 1)
            everything = lambda f: f("get", "", "--prefix")["kvs"]  # noqa: E731
            assert everything(ask) == everything(d.json), "keys, values, revisions, versions, leases"
            assert len(everything(ask)) == 121
            at = ("get", "k/", "--prefix", f"--rev={now - 2}")
            assert ask(*at)["kvs"] == d.json(*at)["kvs"], "history too"
            assert "leased" in d.ctl("lease", "timetolive", "--keys", lease, endpoint=client)
            assert "compacted" in d.ctl("get", "k/", f"--rev={now - 4}", endpoint=client, check=False, full=True).stderr
        finally:
            process.kill()
            process.wait()


def test_who_may_connect_and_what_survives(fresh):
    with datastore(fresh) as d:
        stranger = d.ctl("--command-timeout=2s", "get", "a", certified=False, check=False, full=True)
        assert stranger.returncode != 0, stranger
        d.ctl("put", "a", "1")
        lease = d.ctl("lease", "grant", "600").split()[1]
        d.ctl("put", "b", "2", f"--lease={lease}")
        # Not with this etcdctl: over unix sockets its gRPC sends a path as the authority, which no strict HTTP/2 server takes.
        health = run(d.cluster.net.inside(["curl", "-s", "--unix-socket", d.socket, "http://x/health"])).stdout
        assert json.loads(health)["health"] == "true", health
        d.stop(signal.SIGKILL)
        d.start()
        assert d.ctl("get", "a", "b", "--order=ASCEND") + d.ctl("get", "b") == "a\n1\nb\n2\n"
        assert "b" in d.ctl("lease", "timetolive", "--keys", lease)
        second = run(d.cluster.net.inside([d.cluster.isopod, "datastore", "--data-dir", f"{d.dir}/data", "--listen-client-urls", "http://127.0.0.1:1234"]), check=False)
        assert second.returncode != 0 and "in use" in second.stderr, second
        assert d.stop() == 0
        assert not os.path.exists(d.socket), "a clean end takes the socket away"
