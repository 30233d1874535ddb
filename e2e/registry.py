"""A real registry (Debian's docker-registry) on loopback, and the `registries.yaml` that makes it the mirror of others.

It runs in the network namespace that `inside` enters; what it serves is pushed by `fill`, or lies in `storage` already."""

import json
import subprocess
import sys
import time

PORT = 5000


class Registry:
    """`hosts` are the registries that it mirrors. `fill` is a Python script, called with the registry's URL and
    `fill_args`; `storage` a directory that an earlier registry wrote. `secure` are further registries, which whoever wants
    them starts: host and port of each that speaks TLS, with the file that holds its CA's certificate."""

    def __init__(self, hosts, fill=(), fill_args=(), storage=None, port=PORT, secure=None):
        self.secure = secure or {}
        self.hosts, self.fill, self.fill_args, self.storage = list(hosts), list(fill), list(fill_args), storage
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.process = None

    def start(self, directory, inside=lambda args: args):
        """Writes `registry.yml` and `registries.yaml` into `directory`; returns when the registry answers and is full."""
        config = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": self.storage or f"{directory}/registry"}},
            "http": {"addr": f"127.0.0.1:{self.port}"},
        }
        with open(f"{directory}/registry.yml", "w") as f:
            json.dump(config, f)  # JSON is YAML
        with open(f"{directory}/registries.yaml", "w") as f:
            mirrors = {host: {"endpoint": [self.url]} for host in self.hosts}
            mirrors |= {host: {"endpoint": [f"https://{host}"]} for host in self.secure}
            configs = {host: {"tls": {"ca_file": ca}} for host, ca in self.secure.items()}
            json.dump({"mirrors": mirrors, "configs": configs}, f)
        log = open(f"{directory}/registry.log", "wb")
        self.process = subprocess.Popen(
            inside(["docker-registry", "serve", f"{directory}/registry.yml"]), stdout=log, stderr=log
        )
        try:
            self._wait(inside)
            if self.fill:
                done = subprocess.run(
                    inside([sys.executable, *self.fill, self.url, *self.fill_args]),
                    capture_output=True, text=True, timeout=300,
                )  # fmt: skip
                if done.returncode != 0:
                    raise RuntimeError(f"the registry was not filled:\n{done.stdout}{done.stderr}")
        except BaseException:
            self.close()
            raise

    def _wait(self, inside):
        end = time.monotonic() + 20
        while time.monotonic() < end and self.process.poll() is None:
            # A child inside the namespace asks: this process stays outside.
            if subprocess.run(inside(["curl", "-sf", "-o", "/dev/null", f"{self.url}/v2/"])).returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError("docker-registry does not answer; see registry.log")

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
