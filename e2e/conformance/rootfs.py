"""Debian root file systems for images, made by mmdebstrap from Debian's packages: real trees, configured in a chroot.

Made once into the cache; the name holds a digest of what was asked for."""

import hashlib
import io
import os
import subprocess
import tarfile

SUITE = "bookworm"
# What upstream's images of this kind ship (their Dockerfiles), under Debian's names.
TREES = {
    "tools": [
        "bash", "bind9-dnsutils", "busybox-static", "curl", "iperf", "iproute2", "iputils-ping", "netcat-openbsd",
        "procps", "socat", "util-linux", "wget",
    ],
    "nginx": ["curl", "nginx-light"],
}  # fmt: skip
# Documentation and translations: half of the files, which no container reads.
LEFT_OUT = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*"]


def tree(name, cache):
    """Path of the tar of a tree."""
    asked = hashlib.sha256(repr((SUITE, TREES[name], LEFT_OUT)).encode()).hexdigest()[:12]
    path = os.path.join(cache, f"{name}-{asked}.tar")
    if os.path.exists(path):
        return path
    os.makedirs(cache, exist_ok=True)
    print(f"making the Debian tree {name}", flush=True)
    part = path + ".part"
    done = subprocess.run(
        ["nice", "-n", "5", "mmdebstrap", "--variant=essential", "--format=tar", f"--include={','.join(TREES[name])}",
         *[f"--dpkgopt=path-exclude={p}" for p in LEFT_OUT], SUITE, part],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"mmdebstrap failed:\n{done.stderr[-3000:]}")
    os.rename(part, path)
    return path


class Tree:
    """A tree, to be read: its bytes, files, and whether a path is there."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.raw = f.read()
        self.tar = tarfile.open(fileobj=io.BytesIO(self.raw))
        self.names = {m.name.removeprefix("./").rstrip("/") for m in self.tar}

    def read(self, path):
        return self.tar.extractfile("./" + path).read()
