"""Attacks over HTTP/2, and clients that hardly read or write, on the API server and on the datastore's port: memory stays bounded,
others are served meanwhile, and what does not get on ends. `clients/python/attacks.py` has them."""

import os
import shutil
import subprocess
import sys
import tempfile

from harness import HERE, run, wait
from test_input import curl

ATTACKS = f"{HERE}/clients/python/attacks.py"


def test_the_api_server_stands_them(fresh):
    cluster = fresh(agent=False, server_args=["--request-timeout", "6s"]).start()
    try:
        # It leaves the administrator's certificate in a file.
        assert curl(cluster, "GET", "/version")[0] == 200
        attack = [sys.executable, ATTACKS, "api", "127.0.0.1:6443", cluster.server.pid, f"{cluster.dir}/admin.pem"]
        done = run(cluster.net.inside(attack), timeout=180)
        print(done.stdout)
        assert done.stdout.endswith("ok\n"), done
    finally:
        cluster.close()


def test_the_datastore_stands_them(fresh):
    cluster = fresh(agent=False)
    where = tempfile.mkdtemp(prefix="isopod-e2e-")
    listen = "127.0.0.1:2379"
    command = [cluster.isopod, "datastore", "--data-dir", where, "--listen-client-urls", f"http://{listen}"]
    with open(f"{where}.log", "wb") as log:
        server = subprocess.Popen(cluster.net.inside(command), stdout=log, stderr=log)
    try:
        wait("the datastore", lambda: run(cluster.net.inside(["curl", "-sf", f"http://{listen}/readyz"])).stdout == "ok\n")
        done = run(cluster.net.inside([sys.executable, ATTACKS, "etcd", listen, server.pid]), timeout=180)
        print(done.stdout)
        assert done.stdout.endswith("ok\n"), done
    finally:
        server.terminate()
        server.wait(30)
        cluster.close()
        shutil.rmtree(where, ignore_errors=True)
        os.unlink(f"{where}.log")
