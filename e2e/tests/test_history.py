"""What clients of `isopod datastore` see while it is killed, stopped, cut off and short of space is recorded and checked.

`isopod-e2e-history` writes, reads and watches with many clients and judges what all of them saw: nothing acknowledged is
lost, nothing happens twice, no watch misses an event. ISOPOD_HISTORY_SECONDS makes each run longer."""

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

from harness import Failure, run, wait

SECONDS = int(os.environ.get("ISOPOD_HISTORY_SECONDS", "12"))
PORT, PROXY = 2379, 2380
# The program takes `--datastore-endpoint postgres://…`.
POSTGRES = True


class Server:
    """One `isopod datastore`, which is started again whenever it was killed."""

    def __init__(self, cluster, port=PORT, endpoint="sqlite", data=None):
        self.cluster, self.port, self.endpoint = cluster, port, endpoint
        self.data = data or f"{cluster.dir}/data-{port}"
        self.log, self.process = f"{cluster.dir}/datastore-{port}.log", None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def spawn(self):
        command = [self.cluster.isopod, "datastore", "--data-dir", self.data, "--datastore-endpoint", self.endpoint, "--listen-client-urls", self.url]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.cluster.net.inside(command), stdout=log, stderr=log)

    def start(self):
        self.spawn()
        wait("the datastore", self.answers, 60)
        return self

    def answers(self):
        if self.process.poll() is not None:
            with open(self.log) as f:
                raise SystemExit(f"the datastore ended with {self.process.returncode}:\n{f.read()[-3000:]}")
        return run(self.cluster.net.inside(["curl", "-sf", f"{self.url}/health"]), check=False).returncode == 0

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def signal(self, how):
        self.process.send_signal(how)

    def close(self):
        if self.process and self.process.poll() is None:
            # A stopped process takes no other signal.
            self.process.send_signal(signal.SIGCONT)
            self.kill()


@contextlib.contextmanager
def judged(cluster, *endpoints, seconds=SECONDS, flags=()):
    """Clients run against the endpoints while the body makes trouble: it is given a function that says whether to go on."""
    program = os.path.join(os.path.dirname(cluster.isopod), "isopod-e2e-history")
    seed = random.randrange(1 << 30)
    dump = f"{cluster.dir}/history.json"
    where = [f"--endpoint={e}" for e in endpoints]
    command = cluster.net.inside([program, *where, f"--seconds={seconds}", f"--seed={seed}", f"--dump={dump}", *flags])
    with open(f"{cluster.dir}/history.log", "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + seconds
        try:
            yield lambda: time.monotonic() < end and process.poll() is None
            code = process.wait(seconds + 240)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        said = log.read()
    if code:
        kept = tempfile.mkdtemp(prefix="isopod-history-")
        with contextlib.suppress(OSError):
            shutil.copy(dump, kept)
        raise Failure(f"seed {seed}: exit {code}; check it again with {program} --check {kept}/history.json\n{said[:6000]}")
    print(f"        {said.strip()}", flush=True)


def pause(shortest, longest):
    time.sleep(random.uniform(shortest, longest))


@contextlib.contextmanager
def datastore(fresh, **kw):
    cluster = fresh(agent=False)
    server = Server(cluster, **kw)
    try:
        yield server.start()
    finally:
        server.close()
        cluster.close()


def test_kills(fresh):
    with datastore(fresh) as server, judged(server.cluster, server.url) as goes_on:
        kills = 0
        while goes_on():
            pause(0.1, 1.5)
            server.kill()
            server.spawn()
            kills += 1
        assert kills > SECONDS / 3, kills


def test_stops(fresh):
    with datastore(fresh) as server, judged(server.cluster, server.url) as goes_on:
        while goes_on():
            pause(0.2, 2)
            server.signal(signal.SIGSTOP)
            # Longer than clients are patient, now and then.
            pause(0.05, random.choice((0.3, 5)))
            server.signal(signal.SIGCONT)


class BadNetwork:
    """Carries connections to a server, and cuts, delays or forgets them at random."""

    def __init__(self, target):
        self.target, self.pairs, self.lock, self.ends = target, [], threading.Lock(), False
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", PROXY))
        self.listener.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while not self.ends:
            try:
                inner, _ = self.listener.accept()
                outer = socket.create_connection(("127.0.0.1", self.target), timeout=2)
                outer.settimeout(None)
            except OSError:
                continue
            pair = {"sockets": (inner, outer), "held": threading.Event()}
            pair["held"].set()
            with self.lock:
                self.pairs.append(pair)
            for a, b in ((inner, outer), (outer, inner)):
                threading.Thread(target=self.carry, args=(a, b, pair), daemon=True).start()

    def carry(self, a, b, pair):
        with contextlib.suppress(OSError):
            while data := a.recv(1 << 16):
                # While a connection is held, what was sent is on its way.
                pair["held"].wait()
                b.sendall(data)
        self.cut(pair)

    def cut(self, pair):
        pair["held"].set()
        with self.lock:
            if pair in self.pairs:
                self.pairs.remove(pair)
        for s in pair["sockets"]:
            with contextlib.suppress(OSError):
                # A reset: what the other end has not read is lost.
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                s.shutdown(socket.SHUT_RDWR)
            s.close()

    def trouble(self):
        with self.lock:
            some = random.sample(self.pairs, min(len(self.pairs), random.randint(1, 6)))
        if random.random() < 0.5:
            for pair in some:
                self.cut(pair)
            return
        for pair in some:
            pair["held"].clear()
        pause(0.01, random.choice((0.3, 4)))
        for pair in some:
            pair["held"].set()

    def close(self):
        self.ends = True
        self.listener.close()
        with self.lock:
            left = list(self.pairs)
        for pair in left:
            self.cut(pair)


@contextlib.contextmanager
def inside(namespace):
    """This thread's sockets, and those of the threads that it starts, belong to the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(file):
        # 0: whatever sort of namespace the file is.
        if libc.setns(file.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")

    with open("/proc/thread-self/ns/net") as ours, open(f"/run/netns/{namespace}") as theirs:
        enter(theirs)
        try:
            yield
        finally:
            enter(ours)


def test_a_bad_network(fresh):
    with datastore(fresh) as server:
        with inside(server.cluster.net.node):
            network = BadNetwork(server.port)
        try:
            with judged(server.cluster, f"http://127.0.0.1:{PROXY}") as goes_on:
                while goes_on():
                    pause(0.02, 0.4)
                    network.trouble()
        finally:
            network.close()


def test_a_full_disk(fresh):
    cluster = fresh(agent=False)
    data = f"{cluster.dir}/small"
    os.makedirs(data)
    run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", data])
    server = Server(cluster, data=data)
    try:
        server.start()
        with judged(cluster, server.url) as goes_on:
            filled = 0
            while goes_on():
                pause(0.3, 1)
                filled += fill(f"{data}/filler")
                pause(0.2, 2)
                os.remove(f"{data}/filler")
                disarm(server)
                if random.random() < 0.3:
                    server.kill()
                    server.spawn()
            assert filled, "the disk was never full"
    finally:
        server.close()
        run(["umount", "-l", data], check=False)
        cluster.close()


def fill(path):
    """Takes all the space that there is."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as f:
        while True:
            f.write(b"\0" * (1 << 16))
    return 1


def disarm(server):
    """As etcd does, a server that ran out of space takes no writes until an operator says so."""
    env = dict(os.environ, ETCDCTL_API="3")
    ctl = ["etcdctl", f"--endpoints={server.url}", "--command-timeout=3s", "alarm", "disarm"]
    subprocess.run(server.cluster.net.inside(ctl), capture_output=True, env=env, timeout=30)


class Postgres:
    """A database server of the test's own; root may not run one."""

    def __init__(self, cluster):
        self.cluster, self.dir = cluster, tempfile.mkdtemp(prefix="isopod-pg-")
        os.chmod(self.dir, 0o777)
        found = sorted(os.listdir("/usr/lib/postgresql"), key=int)
        self.bin = f"/usr/lib/postgresql/{found[-1]}/bin"
        self.command("initdb", "-D", f"{self.dir}/db", "-U", "isopod", "-A", "trust", "--no-sync")
        self.ctl("start", "-l", f"{self.dir}/log", "-o", f"-k {self.dir} -h 127.0.0.1 -p 5432")

    url = "postgres://isopod@127.0.0.1:5432/postgres"

    def command(self, name, *args, check=True):
        as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", f"{self.bin}/{name}", *args]
        # A server that is started keeps its output: it must not be a pipe that somebody waits for.
        with open(f"{self.dir}/{name}.out", "w+") as out:
            done = subprocess.run(self.cluster.net.inside(as_nobody), stdout=out, stderr=out, timeout=120)
            out.seek(0)
            if check and done.returncode:
                raise Failure(f"{name} {' '.join(args)}: {out.read()}")

    def ctl(self, what, *args, **kw):
        self.command("pg_ctl", what, "-w", "-D", f"{self.dir}/db", *args, **kw)

    def cut(self):
        sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND random() < 0.7"
        self.command("psql", "-h", self.dir, "-U", "isopod", "-d", "postgres", "-c", sql, check=False)

    def close(self):
        self.ctl("stop", "-m", "immediate", check=False)
        shutil.rmtree(self.dir, ignore_errors=True)


@contextlib.contextmanager
def two_on_postgres(fresh):
    cluster = fresh(agent=False)
    database, servers = None, []
    try:
        database = Postgres(cluster)
        servers = [Server(cluster, port=port, endpoint=database.url) for port in (2379, 2389)]
        for server in servers:
            server.start()
        yield cluster, database, servers
    finally:
        for server in servers:
            server.close()
        if database:
            database.close()
        cluster.close()


def test_two_servers_on_one_postgres(fresh):
    if not POSTGRES:
        return
    with two_on_postgres(fresh) as (cluster, _, servers), judged(cluster, *[s.url for s in servers]) as goes_on:
        while goes_on():
            pause(0.3, 2)
            server = random.choice(servers)
            server.kill()
            server.spawn()


def test_a_postgres_that_comes_and_goes(fresh):
    if not POSTGRES:
        return
    with two_on_postgres(fresh) as (cluster, database, servers), judged(cluster, *[s.url for s in servers]) as goes_on:
        while goes_on():
            pause(0.3, 2)
            if random.random() < 0.6:
                database.cut()
            else:
                database.ctl("restart", "-m", random.choice(("immediate", "fast")), "-l", f"{database.dir}/log", "-o", f"-k {database.dir} -h 127.0.0.1 -p 5432")
