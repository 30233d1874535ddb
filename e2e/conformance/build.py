#!/usr/bin/env python3
"""Builds upstream's conformance suite, ginkgo, and the programs of the test images: unmodified, from the modules that
upstream/go.mod pins.

Built once into DIR (`build.py DIR`): a stamp says from what. A program is renamed into place when it is whole, so that
an interrupted build leaves nothing half-made."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
MODULE = os.path.join(HERE, "upstream")
VERSION = "v1.37.2"
# The flags of the other Go builds of these modules, so that they share Go's build cache. Stripping happens in the linker.
STAMP = "k8s.io/component-base/version"
LDFLAGS = f"-s -w -X {STAMP}.gitVersion={VERSION} -X {STAMP}.gitMajor=1 -X {STAMP}.gitMinor=37 -X {STAMP}.gitTreeState=clean"
PROGRAMS = {
    "ginkgo": "github.com/onsi/ginkgo/v2/ginkgo",
    "agnhost": "k8s.io/kubernetes/test/images/agnhost",
    "nnp": "k8s.io/kubernetes/test/images/nonewprivs",
    "sample-apiserver": "k8s.io/sample-apiserver",
    "etcd": "go.etcd.io/etcd/server/v3",
}
SUITE = "k8s.io/kubernetes/test/e2e"


def go(*args, **kw):
    env = dict(os.environ, CGO_ENABLED="0", GOWORK="off")
    return subprocess.run(["nice", "-n", "5", "go", *args], cwd=MODULE, env=env, check=True, **kw)


def fingerprint():
    """What the programs are made from."""
    digest = hashlib.sha256(subprocess.run(["go", "version"], check=True, capture_output=True).stdout)
    for file in (f"{MODULE}/go.mod", f"{MODULE}/go.sum", __file__):
        with open(file, "rb") as f:
            digest.update(f.read())
    return digest.hexdigest()


def build(out):
    os.makedirs(out, exist_ok=True)
    with open(f"{out}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made, want = f"{out}/stamp", fingerprint()
        if os.path.exists(made) and open(made).read() == want:
            return
        source = go("list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes", capture_output=True, text=True).stdout.strip()
        part = f"{out}/.part"
        for name, package in PROGRAMS.items():
            print(f"building {name}", flush=True)
            go("build", "-ldflags", LDFLAGS, "-o", part, package)
            os.rename(part, f"{out}/{name}")
        print("building pause", flush=True)
        subprocess.run(["gcc", "-Os", "-static", "-s", "-o", part, f"{source}/build/pause/linux/pause.c"], check=True)
        os.rename(part, f"{out}/pause")
        print("building e2e.test: some 20 minutes of two cores the first time", flush=True)
        go("test", "-c", "-vet=off", "-ldflags", LDFLAGS, "-o", part, SUITE)
        os.rename(part, f"{out}/e2e.test")
        # Data of the module: the list of conformance specs, and what the images hold beside programs.
        shutil.copyfile(f"{source}/test/conformance/testdata/conformance.yaml", f"{out}/conformance.yaml")
        shutil.rmtree(f"{out}/images", ignore_errors=True)
        for sub in ("agnhost/porter", "kitten/html", "nautilus/html"):
            shutil.copytree(f"{source}/test/images/{sub}", f"{out}/images/{sub}", copy_function=shutil.copyfile)
        with open(made, "w") as f:
            f.write(want)


if __name__ == "__main__":
    build(sys.argv[1])
