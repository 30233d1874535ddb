#!/usr/bin/env python3
"""`make soak-store`: stock kube-apiserver on `isopod datastore`, both killed and restarted at random, for as long as is asked.

Clients create, change and delete 20,000 ConfigMaps; each knows what it was told and notices a write that was acknowledged and is
gone. Two watches run through it all: one of kube-apiserver, one of the datastore itself, which may miss nothing. From time to time
the clients pause, and then everything must be the same: what the clients know, a consistent list, a list from kube-apiserver's
cache, what both watches made of their events, and the keys in the datastore with their revisions."""

import argparse
import base64
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench-store"))
from servers import Failure, Postgres, Process, free_port, listens, run, wait  # noqa: E402

NAMESPACE = "soak"
PATH = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
PREFIX = f"/registry/configmaps/{NAMESPACE}/"
WRITERS = 8
TOKEN = "soak"
# A write that was not answered may reach the datastore so many seconds later: only then is it known not to have been done.
ON_ITS_WAY = 5


class Servers:
    """The datastore and kube-apiserver, each of which may be killed at any time."""

    def __init__(self, args, dir):
        self.args, self.dir = args, dir
        self.etcd, self.api = free_port(), free_port()
        self.postgres = None
        if args.datastore == "postgres":
            self.postgres = Postgres(dir, None)
            self.postgres.start()
        run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=soak",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{dir}/tls.key", "-out", f"{dir}/tls.crt"])
        run(["openssl", "genrsa", "-out", f"{dir}/sa.key", "2048"])
        with open(f"{dir}/tokens.csv", "w") as f:
            f.write(f'{TOKEN},admin,1,"system:masters"\n')
        self.running = {}

    def start_datastore(self):
        url = f"http://127.0.0.1:{self.etcd}"
        args = [self.args.isopod, "datastore", "--data-dir", f"{self.dir}/data", "--listen-client-urls", url]
        if self.postgres:
            args += ["--datastore-endpoint", self.postgres.url()]
        self.running["datastore"] = server = Process("datastore", args, self.dir, None)
        server.ready(lambda: listens(self.etcd))

    def start_apiserver(self):
        f = lambda name: f"{self.dir}/{name}"  # noqa: E731
        args = [f"{self.args.upstream}/kube-apiserver", f"--etcd-servers=http://127.0.0.1:{self.etcd}", "--bind-address=127.0.0.1",
                f"--secure-port={self.api}", f"--tls-cert-file={f('tls.crt')}", f"--tls-private-key-file={f('tls.key')}", f"--cert-dir={self.dir}",
                f"--token-auth-file={f('tokens.csv')}", "--authorization-mode=RBAC", "--service-cluster-ip-range=10.43.0.0/16",
                "--service-account-issuer=https://soak", f"--service-account-key-file={f('sa.key')}", f"--service-account-signing-key-file={f('sa.key')}",
                f"--etcd-compaction-interval={self.args.compaction}", "--advertise-address=192.0.2.10", "--disable-admission-plugins=ServiceAccount"]
        self.running["kube-apiserver"] = server = Process("kube-apiserver", args, self.dir, None)
        client = Client(self)
        server.ready(lambda: client.ok("/readyz"), 180)

    def restart(self, name, how):
        process = self.running[name].process
        process.send_signal(how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            # kube-apiserver waits for its watches, and ours has no end.
            if name == "datastore":
                raise Failure(f"{name} does not end") from None
            process.kill()
            process.wait()
        self.start_datastore() if name == "datastore" else self.start_apiserver()

    def ready(self):
        """Whether they go on by themselves is part of the test: a server that ended is not started again here."""
        for name, server in self.running.items():
            if server.process.poll() is not None:
                with open(server.log) as f:
                    raise Failure(f"{name} ended by itself with {server.process.returncode}:\n{f.read()[-3000:]}")
        client = Client(self)
        wait("kube-apiserver", lambda: client.ok("/readyz"), 120, every=0.5)

    def close(self):
        for server in reversed(self.running.values()):
            server.stop()
        if self.postgres:
            self.postgres.server.stop()


class Unanswered(Exception):
    """The request was done, or not."""


class Client:
    def __init__(self, servers):
        self.servers, self.connection = servers, None
        self.tls = ssl.create_default_context(cafile=f"{servers.dir}/tls.crt")

    def open(self, method, path, body=None, timeout=60):
        if self.connection is None:
            self.connection = http.client.HTTPSConnection("127.0.0.1", self.servers.api, context=self.tls, timeout=timeout)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        try:
            self.connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            return self.connection.getresponse()
        except (OSError, http.client.HTTPException) as e:
            self.close()
            raise Unanswered(str(e)) from None

    def ask(self, method, path, body=None):
        """Status and answer. Raises Unanswered where nobody knows whether it was done."""
        try:
            response = self.open(method, path, body)
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as e:
            self.close()
            raise Unanswered(str(e)) from None
        # A time-out and an internal error leave it open whether the datastore has written.
        if response.status in (429, 500, 502, 503, 504):
            raise Unanswered(f"{response.status} {answer.get('message')}")
        return response.status, answer

    def ok(self, path):
        try:
            response = self.open("GET", path, timeout=10)
            response.read()
            return response.status == 200
        except (OSError, http.client.HTTPException, Unanswered):
            self.close()
            return False

    def list(self, query=""):
        """Name to resource version and data, and the list's resource version."""
        status, answer = self.ask("GET", f"{PATH}{query}")
        if status != 200:
            raise Failure(f"a list was answered with {status}: {answer.get('message')}")
        return {o["metadata"]["name"]: (int(o["metadata"]["resourceVersion"]), o["data"]["n"]) for o in answer["items"]}, int(answer["metadata"]["resourceVersion"])

    def close(self):
        if self.connection:
            self.connection.close()
            self.connection = None


class Writer(threading.Thread):
    """Owns some of the objects: nobody else writes them."""

    def __init__(self, soak, number, names):
        super().__init__(daemon=True)
        self.soak, self.client, self.random = soak, Client(soak.servers), random.Random(soak.args.seed * 1000 + number)
        # Resource version and value as acknowledged; None: it is not there.
        self.known = dict.fromkeys(names)
        # What the last write of an object would have made of it, and when, where it was not answered.
        self.open = {}
        self.count, self.unanswered, self.serial, self.number = 0, 0, 0, number

    def run(self):
        try:
            self.fill()
            while not self.soak.over.is_set():
                self.soak.gate(self)
                self.step(self.random.choice(list(self.known)))
        except Exception as e:  # noqa: BLE001
            self.soak.fail(f"writer {self.number}: {type(e).__name__}: {e}")

    def fill(self):
        for name in self.known:
            while self.known[name] is None and not self.soak.over.is_set():
                self.soak.gate(self)
                self.step(name)
        self.soak.filled(self)

    def settle(self):
        """Asks what became of the writes that were not answered."""
        for name in list(self.open):
            while name in self.open and not self.soak.over.is_set():
                self.look(name)

    def step(self, name):
        if name in self.open:
            return self.look(name)
        self.serial += 1
        value = f"{self.number}-{self.serial}"
        known = self.known[name]
        metadata = {"name": name, "namespace": NAMESPACE}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"n": value, "fill": "x" * self.random.randrange(1000)}}
        if known is None:
            return self.write(name, value, "POST", PATH, body)
        metadata["resourceVersion"] = str(known[0])
        if self.random.random() < 0.1:
            return self.write(name, None, "DELETE", f"{PATH}/{name}", {"preconditions": {"resourceVersion": str(known[0])}})
        return self.write(name, value, "PUT", f"{PATH}/{name}", body)

    def write(self, name, value, method, path, body):
        try:
            status, answer = self.client.ask(method, path, body)
        except Unanswered:
            self.unanswered += 1
            self.open[name] = (value, time.monotonic())
            return
        if status not in (200, 201):
            # Nobody else writes it: a conflict is a write that was lost, or done twice.
            raise Failure(f"{method} {name}, known as {self.known[name]}, was answered with {status}: {answer.get('message')}")
        self.known[name] = (int(answer["metadata"]["resourceVersion"]), value) if value else None
        self.count += 1

    def look(self, name):
        try:
            status, answer = self.client.ask("GET", f"{PATH}/{name}")
        except Unanswered:
            time.sleep(0.2)
            return
        found = (int(answer["metadata"]["resourceVersion"]), answer["data"]["n"]) if status == 200 else None
        (wanted, since), known = self.open[name], self.known[name]
        done = found is None if wanted is None else found is not None and found[1] == wanted
        if not done and found != known:
            raise Failure(f"{name} is {found}; acknowledged was {known}, and not answered {wanted}")
        if not done and time.monotonic() < since + ON_ITS_WAY:
            time.sleep(0.05)
            return
        self.known[name] = found
        del self.open[name]


class DatastoreWatch(threading.Thread):
    """etcdctl's watch; its client goes on where it was by itself. Versions of a key have no gaps, so nothing was missed."""

    def __init__(self, soak, revision):
        super().__init__(daemon=True)
        self.soak, self.next, self.state, self.events, self.process = soak, revision, {}, 0, None

    def run(self):
        try:
            while not self.soak.over.is_set():
                self.follow()
        except Exception as e:  # noqa: BLE001
            self.soak.fail(f"the datastore's watch: {type(e).__name__}: {e}")

    def follow(self):
        args = ["etcdctl", f"--endpoints=127.0.0.1:{self.soak.servers.etcd}", "watch", "--prefix", PREFIX, f"--rev={self.next}", "-w", "json"]
        self.process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ, ETCDCTL_API="3"), text=True)
        for line in self.process.stdout:
            answer = json.loads(line)
            if answer.get("Canceled") or answer.get("CompactRevision"):
                raise Failure(f"it was cancelled at {self.next}: {line[:300]}")
            for event in answer.get("Events") or []:
                self.take(event["kv"], event.get("type") == 1)
        self.process.wait()
        if not self.soak.over.is_set() and "compacted" in self.process.stderr.read():
            raise Failure(f"revision {self.next} was compacted before it was delivered")

    def take(self, kv, deleted):
        key, revision = base64.b64decode(kv["key"]).decode(), int(kv["mod_revision"])
        if revision < self.next - 1:
            raise Failure(f"{key}: revision {revision} came after {self.next - 1}")
        before = self.state.get(key)
        if deleted:
            if before is None:
                raise Failure(f"{key} was deleted at {revision} and was not there")
            del self.state[key]
        else:
            version = before[1] + 1 if before else 1
            if int(kv["version"]) != version:
                raise Failure(f"{key}: version {kv['version']} at {revision} instead of {version}: an event is missing")
            self.state[key] = (revision, version)
        self.next = revision + 1
        self.events += 1


class ApiWatch(threading.Thread):
    """A watch of kube-apiserver. After its restart it knows no old revisions, and says so: then a list takes its place."""

    def __init__(self, soak):
        super().__init__(daemon=True)
        self.soak, self.state, self.revision, self.lists, self.events = soak, {}, 0, 0, 0

    def run(self):
        client = Client(self.soak.servers)
        while not self.soak.over.is_set():
            try:
                if self.revision == 0:
                    found, self.revision = client.list()
                    self.state = {name: rev for name, (rev, _) in found.items()}
                    self.lists += 1
                self.follow(client)
            except (Unanswered, OSError, http.client.HTTPException, ValueError):
                time.sleep(0.2)
            except Exception as e:  # noqa: BLE001
                self.soak.fail(f"kube-apiserver's watch: {type(e).__name__}: {e}")
                return
            finally:
                client.close()

    def follow(self, client):
        response = client.open("GET", f"{PATH}?watch=1&allowWatchBookmarks=true&resourceVersion={self.revision}", timeout=30)
        if response.status == 410:
            self.revision = 0
        if response.status != 200:
            response.read()
            raise Unanswered(str(response.status))
        # A bookmark comes once a minute at least; a broken connection is noticed after the time-out.
        for line in iter(response.readline, b""):
            event = json.loads(line)
            object = event["object"]
            if event["type"] == "ERROR":
                if object.get("code") == 410:
                    self.revision = 0
                return
            revision = int(object["metadata"]["resourceVersion"])
            if revision < self.revision or (revision == self.revision and event["type"] != "BOOKMARK"):
                raise Failure(f"an event of revision {revision} came after {self.revision}")
            self.take(event["type"], object["metadata"].get("name"), revision)
            self.revision = revision

    def take(self, type, name, revision):
        if type == "BOOKMARK":
            return
        if (type == "ADDED") == (name in self.state):
            raise Failure(f"{name}: {type} at {revision}, and it was {'there' if name in self.state else 'not there'}")
        if type == "DELETED":
            del self.state[name]
        else:
            self.state[name] = revision
        self.events += 1


class Soak:
    def __init__(self, args, dir):
        self.args, self.random = args, random.Random(args.seed)
        self.servers = Servers(args, dir)
        self.over, self.failure = threading.Event(), None
        self.lock = threading.Condition()
        self.paused, self.waiting, self.full = False, set(), set()
        self.checks = self.restarts = 0

    def fail(self, why):
        self.failure = self.failure or why
        self.over.set()
        with self.lock:
            self.lock.notify_all()

    # -- pauses

    def gate(self, writer):
        with self.lock:
            while self.paused and not self.over.is_set():
                self.waiting.add(writer)
                self.lock.notify_all()
                self.lock.wait(1)
            self.waiting.discard(writer)

    def filled(self, writer):
        with self.lock:
            self.full.add(writer)

    @contextlib.contextmanager
    def pause(self):
        with self.lock:
            self.paused = True
            end = time.monotonic() + 180
            while len(self.waiting) < len(self.writers) and not self.over.is_set():
                if time.monotonic() > end:
                    raise Failure("the writers do not pause: requests are not answered")
                self.lock.wait(1)
        try:
            yield
        finally:
            with self.lock:
                self.paused = False
                self.lock.notify_all()

    # -- the check

    def check(self):
        self.servers.ready()
        with self.pause():
            for writer in self.writers:
                writer.settle()
            self.over_or(lambda: None)
            known = {n: v for w in self.writers for n, v in w.known.items() if v}
            client = Client(self.servers)
            consistent, _ = client.list()
            same("a consistent list", consistent, "what was acknowledged", known)
            revisions = {n: v[0] for n, v in known.items()}
            same("the datastore", self.stored(), "what was acknowledged", revisions)
            self.until("a list from the cache", lambda: client.list("?resourceVersion=0")[0], known)
            self.until("what kube-apiserver's watch has told", lambda: dict(self.api_watch.state), revisions)
            self.until("what the datastore's watch has told", lambda: {k[len(PREFIX):]: r for k, (r, _) in dict(self.watch.state).items()}, revisions)
        self.checks += 1

    def stored(self):
        args = ["etcdctl", f"--endpoints=127.0.0.1:{self.servers.etcd}", "--command-timeout=60s", "get", "--prefix", PREFIX, "--keys-only", "-w", "json"]
        answer = json.loads(run(args, env=dict(os.environ, ETCDCTL_API="3")).stdout)
        return {base64.b64decode(kv["key"]).decode()[len(PREFIX):]: int(kv["mod_revision"]) for kv in answer.get("kvs", [])}

    def until(self, what, read, wanted):
        """Nothing changes meanwhile: it may take its time, and must get there."""
        end = time.monotonic() + 60
        while True:
            self.over_or(lambda: None)
            try:
                found = read()
            except Unanswered:
                found = None
            if found == wanted:
                return
            if time.monotonic() > end:
                return same(what, found or {}, "what was acknowledged", wanted)
            time.sleep(0.2)

    def over_or(self, act):
        if self.failure:
            raise Failure(self.failure)
        return act()

    # -- the whole

    def run(self):
        self.servers.start_datastore()
        self.servers.start_apiserver()
        client = Client(self.servers)
        status, answer = client.ask("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        if status != 201:
            raise Failure(f"the namespace was not made: {answer}")
        names = [f"m{n:05}" for n in range(self.args.objects)]
        self.writers = [Writer(self, n, names[n::WRITERS]) for n in range(WRITERS)]
        self.watch, self.api_watch = DatastoreWatch(self, 1), ApiWatch(self)
        for thread in (self.watch, self.api_watch, *self.writers):
            thread.start()
        wait("all objects", lambda: self.over.is_set() or len(self.full) == WRITERS, 1800, every=0.5)
        self.over_or(self.check)
        self.say("filled")
        end = time.monotonic() + self.args.minutes * 60
        while time.monotonic() < end:
            self.over.wait(self.random.uniform(3, 15))
            self.over_or(lambda: None)
            # Either of them, or both at once, one of them in good order at times.
            victims = self.random.choice([["datastore"], ["datastore"], ["kube-apiserver"], ["datastore", "kube-apiserver"]])
            for name in victims:
                how = self.random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
                self.servers.restart(name, how)
                self.restarts += 1
            self.over.wait(self.random.uniform(3, 10))
            self.over_or(self.check)
            self.say(f"{' and '.join(victims)} restarted")

    def say(self, what):
        writes = sum(w.count for w in self.writers)
        unanswered = sum(w.unanswered for w in self.writers)
        print(f"{time.strftime('%H:%M:%S')} {what}: {self.checks} checks, {self.restarts} restarts, {writes:,} writes acknowledged, {unanswered} not answered, "
              f"{self.watch.events:,} and {self.api_watch.events:,} events, {self.api_watch.lists} lists", flush=True)

    def close(self):
        self.over.set()
        if getattr(self, "watch", None) and self.watch.process:
            self.watch.process.kill()
        self.servers.close()


def same(what, found, other, wanted):
    if found == wanted:
        return
    missing, added = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    changed = [(n, found[n], wanted[n]) for n in found if n in wanted and found[n] != wanted[n]]
    raise Failure(f"{what} is not {other}: {len(missing)} are missing {missing[:5]}, {len(added)} are too many {added[:5]}, {len(changed)} differ {changed[:5]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isopod", required=True)
    parser.add_argument("--upstream", required=True, help="directory of upstream's kube-apiserver")
    parser.add_argument("--datastore", default="sqlite", choices=["sqlite", "postgres"])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--compaction", default="1m", help="kube-apiserver compacts so often")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--scratch", default="/var/tmp")
    args = parser.parse_args()
    dir = os.path.join(args.scratch, f"isopod-soak-{os.getpid()}")
    os.makedirs(dir)
    print(f"seed {args.seed}, {dir}", flush=True)
    soak = Soak(args, dir)
    try:
        soak.run()
    except Failure as e:
        # Logs and data are kept for whoever looks for the reason.
        sys.exit(f"FAILED: {e}\nlogs and data: {dir}")
    finally:
        soak.close()
    print("passed: nothing diverged, nothing was missed")
    shutil.rmtree(dir, ignore_errors=True)


if __name__ == "__main__":
    main()
