"""The images that the conformance specs use, made as images.toml says, under upstream's names.

`storage(upstream, cache)` returns a directory for docker-registry that serves them all; it is filled once through a real
registry on loopback and kept under a name that holds a digest of all that went in."""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import busybox  # noqa: E402
import images  # noqa: E402
import rootfs  # noqa: E402
from images import Image, Layer, Packed  # noqa: E402
from registry import Registry  # noqa: E402

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def table():
    with open(f"{HERE}/images.toml", "rb") as f:
        return tomllib.load(f)


def references(rows):
    """Every full name that the table gives a source."""
    return {f"{row['name']}:{tag}" for row in rows["image"] for tag in row["tags"]}


def hosts(rows):
    return sorted({row["name"].split("/")[0] for row in rows["image"]})


class Maker:
    """Makes images; trees and their compressed layers are shared."""

    def __init__(self, upstream, cache):
        self.upstream, self.cache = upstream, cache
        self.trees, self.packed = {}, {}

    def tree(self, name):
        if name not in self.trees:
            self.trees[name] = rootfs.Tree(rootfs.tree(name, f"{self.cache}/rootfs"))
        return self.trees[name]

    def base(self, name):
        if name not in self.packed:
            if name == "busybox":
                layer = Layer()
                images.busybox(layer, busybox.binary(self.cache))
                layer.link("usr/bin/env", "/bin/busybox")
                self.packed[name] = Packed(layer.bytes())
            else:
                self.packed[name] = Packed(self.tree(name).raw)
        return self.packed[name]

    def program(self, name):
        with open(f"{self.upstream}/{name}", "rb") as f:
            return f.read()

    def image(self, row):
        layers = [self.base(row["rootfs"])] if "rootfs" in row else []
        top = Layer()
        setuid = row.get("setuid", [])
        for path, program in row.get("programs", {}).items():
            top.file(path.lstrip("/"), self.program(program), 0o6755 if path in setuid else 0o755)
        for path, file in row.get("files", {}).items():
            top.file(path.lstrip("/"), self.program(f"images/{file}"))
        for path, text in row.get("texts", {}).items():
            top.file(path.lstrip("/"), text.encode())
        if "extra" in row:
            EXTRAS[row["extra"]](self, top)
        config = {"Env": [f"PATH={PATH}"], "WorkingDir": "/"}
        for key, name in (("entrypoint", "Entrypoint"), ("cmd", "Cmd"), ("user", "User")):
            if key in row:
                config[name] = row[key]
        if "ports" in row:
            config["ExposedPorts"] = {port: {} for port in row["ports"]}
        return Image([*layers, top.bytes()], config)


def _agnhost(maker, top):
    """What upstream's agnhost has beside its program: a second name, an upload directory, accounts, a registry to serve,
    and every applet of busybox that the tree has no program for."""
    top.link("agnhost-2", "agnhost")
    top.directory("uploads")
    tree = maker.tree("tools")
    user = b"user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n"
    groups = b"user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"
    top.file("etc/passwd", tree.read("etc/passwd") + user)
    top.file("etc/group", tree.read("etc/group") + groups)
    applets = subprocess.run([images.BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    places = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin")
    for applet in applets:
        if not any(f"{place}/{applet}" in tree.names for place in places):
            top.link(f"usr/local/bin/{applet}", "/usr/bin/busybox")
    pause = next(row for row in table()["image"] if row["name"].endswith("/pause"))
    _served_registry(top, "pause", "testing", maker.image(pause))


def _served_registry(top, name, tag, image):
    """An image laid out as agnhost's fake registry server reads it."""
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                {
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": "sha256:" + hashlib.sha256(image.manifest).hexdigest(),
                    "size": len(image.manifest),
                    "platform": {"architecture": json.loads(image.config)["architecture"], "os": "linux"},
                }
            ],
        }
    ).encode()
    base = f"var/registry/{name}"

    def blob(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        top.file(f"{base}/{kind}/sha256/{digest[:2]}/{digest}/data", data)
        return f"sha256:{digest}"

    top.file(f"{base}/manifests/{tag}", blob("manifests", index).encode() + b"\n")
    blob("manifests", image.manifest)
    for data in image.blobs().values():
        blob("blobs", data)


def _nginx(_maker, top):
    """Serves where upstream's nginx does, and logs to the container's output."""
    server = "server {\n  listen 80;\n  location / { root /usr/share/nginx/html; index index.html; }\n}\n"
    top.file("etc/nginx/sites-enabled/default", server.encode())
    top.link("var/log/nginx/access.log", "/dev/stdout")
    top.link("var/log/nginx/error.log", "/dev/stderr")


EXTRAS = {"agnhost": _agnhost, "nginx": _nginx}


def _digest(upstream):
    """Of all that images are made from."""
    digest = hashlib.sha256(repr((rootfs.SUITE, rootfs.TREES, rootfs.LEFT_OUT, images.PASSWD, images.GROUP, busybox.VERSION)).encode())
    files = [f"{HERE}/images.toml", f"{HERE}/catalog.py", f"{upstream}/stamp"]
    for path in files:
        with open(path, "rb") as f:
            digest.update(f.read())
    return digest.hexdigest()[:16]


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def use(storage):
    """Says that a run serves this storage; the file that is returned must stay open for as long."""
    held = os.open(storage, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    return held


def _remove_unless_used(storage):
    held = os.open(storage, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(storage, ignore_errors=True)
    except BlockingIOError:
        pass  # another run serves it: the next one removes it
    finally:
        os.close(held)


def storage(upstream, cache):
    os.makedirs(cache, exist_ok=True)
    with open(f"{cache}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = f"{cache}/registry-{_digest(upstream)}"
        if os.path.exists(path):
            return path
        for old in os.listdir(cache):
            if old.startswith("registry-"):
                _remove_unless_used(f"{cache}/{old}")
        work = tempfile.mkdtemp(prefix="part-", dir=cache)
        rows, maker = table(), Maker(upstream, cache)
        registry = Registry([], storage=f"{work}/registry", port=_free_port())
        try:
            registry.start(work)
            for row in rows["image"]:
                print(f"making {row['name']}", flush=True)
                image = maker.image(row)
                for tag in row["tags"]:
                    image.push(registry.url, row["name"].split("/", 1)[1], tag)
            registry.close()
            os.rename(f"{work}/registry", path)
        finally:
            registry.close()
            shutil.rmtree(work, ignore_errors=True)
        return path
