"""The datastores under comparison: how each is started, which processes and files belong to it, what it costs."""

import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import time

TICK = os.sysconf("SC_CLK_TCK")


class Failure(Exception):
    pass


def run(args, check=True, **kw):
    done = subprocess.run(args, capture_output=True, text=True, **kw)
    if check and done.returncode:
        raise Failure(f"{' '.join(map(str, args))} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done


def wait(what, condition, seconds=60, every=0.05):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        got = condition()
        if got:
            return got
        time.sleep(every)
    raise Failure(f"{what}: not within {seconds} s")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def children_of(pid):
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            with open(f"/proc/{parent}/task/{parent}/children") as f:
                found += [int(p) for p in f.read().split()]
    return found


class Process:
    """A server on its core, with its log beside its data."""

    def __init__(self, name, args, dir, core, user=None):
        self.log = f"{dir}/{name}.log"
        prefix = ["taskset", "-c", str(core)] if core is not None else []
        kw = {"user": user, "group": user, "extra_groups": []} if user else {}
        with open(self.log, "ab") as log:
            # Databases that end in good order need their time; whoever starts them waits for them.
            self.process = subprocess.Popen([*prefix, *args], stdout=log, stderr=log, cwd=dir, **kw)
        self.name, self.pid = name, self.process.pid

    def ready(self, condition, seconds=60):
        def look():
            if self.process.poll() is not None:
                with open(self.log) as f:
                    raise Failure(f"{self.name} ended with {self.process.returncode}:\n{f.read()[-3000:]}")
            return condition()

        wait(self.name, look, seconds)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    # -- what it costs; a process that was waited for counts with its parent

    def pids(self):
        return children_of(self.pid)

    def memory(self):
        """Proportional set size, MiB."""
        kib = 0
        for pid in self.pids():
            with contextlib.suppress(OSError, TypeError):
                with open(f"/proc/{pid}/smaps_rollup") as f:
                    kib += int(re.search(r"^Pss:\s+(\d+)", f.read(), re.M)[1])
        return kib / 1024

    def cpu(self):
        """Seconds."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/stat") as f:
                    fields = f.read().rsplit(") ", 1)[1].split()
                ticks += sum(map(int, fields[11:15]))
        return ticks / TICK


class Postgres:
    """Debian's, on a data directory of its own, as a user that is not root; synchronous_commit stays on, as it is by default."""

    def __init__(self, dir, core):
        found = sorted(p for p in os.listdir("/usr/lib/postgresql") if os.path.exists(f"/usr/lib/postgresql/{p}/bin/initdb")) if os.path.isdir("/usr/lib/postgresql") else []
        if not found:
            raise Failure("there is no Postgres in /usr/lib/postgresql: apt-get install postgresql, or leave it out with --systems")
        self.bin, self.dir, self.core = f"/usr/lib/postgresql/{found[-1]}/bin", f"{dir}/postgres", core
        self.user = None
        os.makedirs(self.dir)
        if os.getuid() == 0:
            self.user = pwd.getpwnam("nobody").pw_uid
            os.chown(self.dir, self.user, -1)
            os.chmod(dir, 0o711)
        as_user = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        run([f"{self.bin}/initdb", "-D", f"{self.dir}/data", "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C"], cwd=self.dir, **as_user)
        self.port = free_port()

    def start(self):
        args = [f"{self.bin}/postgres", "-D", f"{self.dir}/data", "-p", str(self.port), "-k", self.dir, "-c", "listen_addresses=127.0.0.1",
                "-c", "max_connections=300", "-c", "synchronous_commit=on", "-c", "fsync=on"]
        self.server = Process("postgres", args, self.dir, self.core, self.user)
        self.server.ready(lambda: run([f"{self.bin}/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False).returncode == 0)

    def sql(self, text):
        return run(["psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "bench", "-d", "postgres", "-qAt", "-c", text]).stdout

    def url(self):
        return f"postgres://bench@127.0.0.1:{self.port}/postgres?sslmode=disable"


class System:
    """One column of the table. `transactions`: it has no plain puts. `fast`: a million puts take it a few minutes at most.
    `beside`: the column of Isopod with which it is compared."""

    transactions = False
    fast = False
    beside = ""
    postgres = None

    def __init__(self, programs, dir, core):
        self.programs, self.dir, self.core = programs, f"{dir}/{self.name}", core
        os.makedirs(self.dir)
        self.port = free_port()

    @classmethod
    def missing(cls, programs):
        """Why it cannot be measured; empty: it can."""
        return ""

    def start(self):
        if self.postgres:
            self.postgres.start()
        self.server = Process(self.name, self.args(), self.dir, self.core)
        self.server.ready(lambda: listens(self.port))
        return self

    def stop(self):
        self.server.stop()
        if self.postgres:
            self.postgres.server.stop()

    def close(self):
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def processes(self):
        return [self.server] + ([self.postgres.server] if self.postgres else [])

    def endpoint(self):
        return f"127.0.0.1:{self.port}"

    def written(self):
        """Bytes that the disk below was given up to now, the file system's own among them, with what the servers have left to the
        kernel to write. What `/proc/PID/io` says counts whole pieces of the page cache, of 64 KiB and more, for each page in them."""
        os.sync()
        device = os.stat(self.dir).st_dev
        with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat") as f:
            return int(f.read().split()[6]) * 512

    def cost(self, what):
        return sum(getattr(p, what)() for p in self.processes())

    def size(self):
        """Bytes on disk."""
        total = 0
        for where, _, files in os.walk(self.dir):
            for file in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(f"{where}/{file}").st_blocks * 512
        return total

    def defragment(self, load):
        load("defragment", count=1)


QUOTA = str(64 << 30)


class Isopod(System):
    name = "isopod"
    title = "Isopod, SQLite"
    fast = True

    def args(self):
        url = f"http://127.0.0.1:{self.port}"
        return [self.programs.isopod, "datastore", "--data-dir", f"{self.dir}/data", "--listen-client-urls", url, "--quota-backend-bytes", QUOTA]


class IsopodPostgres(Isopod):
    name = "isopod-postgres"
    title = "Isopod, Postgres"
    fast = False

    @classmethod
    def missing(cls, programs):
        told = run([programs.isopod, "datastore", "--help"], check=False).stdout
        return "" if "postgres" in told else "this program has no Postgres"

    def __init__(self, programs, dir, core):
        super().__init__(programs, dir, core)
        self.postgres = Postgres(self.dir, core)

    def args(self):
        return [*super().args(), "--datastore-endpoint", self.postgres.url()]

    def defragment(self, load):
        self.postgres.sql("VACUUM FULL")


class Etcd(System):
    name = "etcd"
    title = "etcd"
    fast = True
    beside = "isopod"

    def args(self):
        url, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{free_port()}"
        return [f"{self.programs.upstream}/etcd", "--data-dir", f"{self.dir}/data", "--log-level=error", "--quota-backend-bytes", str(8 << 30),
                f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}"]


class Kine(System):
    transactions = True
    beside = "isopod"

    def args(self):
        return [f"{self.programs.kine}/kine", "--listen-address", f"127.0.0.1:{self.port}", "--metrics-bind-address", "0", "--endpoint", self.database(),
                "--compact-timeout", "10m", "--slow-sql-threshold", "0"]


class KineSqlite(Kine):
    name = "kine-sqlite"
    title = "kine, SQLite, FULL"
    synchronous = "FULL"

    def database(self):
        # kine's own parameters, but for the one that is measured: with NORMAL a power cut loses acknowledged writes.
        return f"sqlite://{self.dir}/state.db?_journal_mode=WAL&_busy_timeout=30000&_synchronous={self.synchronous}&_txlock=immediate&_stmt_cache_size=20&cache=shared"

    def defragment(self, load):
        # It does so whenever it starts.
        self.stop()
        self.start()


class KineSqliteNormal(KineSqlite):
    name = "kine-sqlite-normal"
    title = "kine, SQLite, NORMAL (less durable)"
    synchronous = "NORMAL"


class KinePostgres(Kine):
    name = "kine-postgres"
    title = "kine, Postgres"
    beside = "isopod-postgres"

    def __init__(self, programs, dir, core):
        super().__init__(programs, dir, core)
        self.postgres = Postgres(self.dir, core)

    def database(self):
        return self.postgres.url()

    def defragment(self, load):
        self.postgres.sql("VACUUM FULL")


SYSTEMS = [Isopod, Etcd, KineSqlite, KineSqliteNormal, IsopodPostgres, KinePostgres]
