#!/usr/bin/env python3
"""Makes images layer by layer and pushes them into a registry. The end-to-end tests' own are made here, from Debian's
static busybox and the project's test program; conformance/catalog.py makes its images of the same parts.

`images.py URL APP` pushes the tests' images."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request

BUSYBOX = "/bin/busybox"
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
GROUP = "root:x:0:\napp:x:1000:\nextra:x:2000:app\nnogroup:x:65534:\n"


def sha(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layer:
    """A tar layer, written entry by entry."""

    def __init__(self):
        self.raw = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.raw, mode="w")

    def directory(self, path, mode=0o755):
        self._add(path, tarfile.DIRTYPE, mode=mode)

    def file(self, path, data, mode=0o644):
        self._add(path, tarfile.REGTYPE, data=data, mode=mode)

    def link(self, path, target):
        self._add(path, tarfile.SYMTYPE, link=target)

    def _add(self, path, kind, data=b"", mode=0o777, link=""):
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.linkname, info.size = kind, mode, link, len(data)
        self.tar.addfile(info, io.BytesIO(data))

    def bytes(self):
        self.tar.close()
        return self.raw.getvalue()


class Packed:
    """A layer as it is pushed: compressed once, however many images share it."""

    def __init__(self, raw):
        self.diff_id = sha(raw)
        self.data = gzip.compress(raw, mtime=0, compresslevel=1)
        self.digest = sha(self.data)


def busybox(layer, binary=BUSYBOX):
    """A static busybox, a link for each applet, and the directories and accounts that a shell expects."""
    for d in ("bin", "etc", "home", "root", "usr", "usr/bin", "var"):
        layer.directory(d)
    layer.directory("tmp", 0o1777)
    with open(binary, "rb") as f:
        layer.file("bin/busybox", f.read(), 0o755)
    for applet in subprocess.run([binary, "--list"], check=True, capture_output=True, text=True).stdout.split():
        if applet != "busybox":
            layer.link(f"bin/{applet}", "/bin/busybox")
    layer.file("etc/passwd", PASSWD.encode())
    layer.file("etc/group", GROUP.encode())


def busybox_layer():
    layer = Layer()
    busybox(layer)
    layer.file("etc/from-below", b"below\n")
    layer.file("etc/removed", b"never seen\n")
    return layer.bytes()


def app_layer(binary):
    layer = Layer()
    with open(binary, "rb") as f:
        layer.file("bin/app", f.read(), 0o755)
    # A whiteout: the file of the layer below is gone.
    layer.file("etc/.wh.removed", b"")
    return layer.bytes()


class Image:
    """Config, layers and manifest of one image."""

    def __init__(self, layers, config):
        self.layers = [raw if isinstance(raw, Packed) else Packed(raw) for raw in layers]
        self.config = json.dumps(
            {
                "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
                "os": "linux",
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
            }
        ).encode()
        oci = "application/vnd.oci.image"
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{oci}.manifest.v1+json",
                "config": {"mediaType": f"{oci}.config.v1+json", "digest": sha(self.config), "size": len(self.config)},
                "layers": [
                    {"mediaType": f"{oci}.layer.v1.tar+gzip", "digest": layer.digest, "size": len(layer.data)}
                    for layer in self.layers
                ],
            }
        ).encode()

    def push(self, registry, name, tag):
        """Pushes by the distribution API to `registry` (http://host:port)."""
        for digest, blob in self.blobs().items():
            if _exists(f"{registry}/v2/{name}/blobs/{digest}"):
                continue
            with _request("POST", f"{registry}/v2/{name}/blobs/uploads/") as r:
                place = r.headers["Location"]
            place += ("&" if "?" in place else "?") + "digest=" + digest
            _request("PUT", place, blob, "application/octet-stream").close()
        kind = "application/vnd.oci.image.manifest.v1+json"
        _request("PUT", f"{registry}/v2/{name}/manifests/{tag}", self.manifest, kind).close()

    def blobs(self):
        """Config and layers by digest."""
        return {sha(self.config): self.config, **{layer.digest: layer.data for layer in self.layers}}

    def archive(self, path, ref):
        """Writes an OCI archive that holds the image under the name `ref`."""
        blobs = {sha(self.manifest): self.manifest, **self.blobs()}
        index = {
            "schemaVersion": 2,
            "manifests": [
                {
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": sha(self.manifest),
                    "size": len(self.manifest),
                    "annotations": {"org.opencontainers.image.ref.name": ref, "io.containerd.image.name": ref},
                }
            ],
        }
        layer = Layer()
        layer.file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        layer.file("index.json", json.dumps(index).encode())
        for d in ("blobs", "blobs/sha256"):
            layer.directory(d)
        for digest, blob in blobs.items():
            layer.file("blobs/sha256/" + digest.split(":")[1], blob)
        with open(path, "wb") as f:
            f.write(layer.bytes())


def _exists(url):
    try:
        _request("HEAD", url).close()
        return True
    except urllib.error.HTTPError as e:
        if e.code != 404:
            raise
        return False


def _request(method, url, data=None, kind=None):
    req = urllib.request.Request(url, data=data, method=method)
    if kind:
        req.add_header("Content-Type", kind)
    return urllib.request.urlopen(req, timeout=30)


def build(app_binary):
    """All test images by `name:tag`."""
    base = busybox_layer()
    app = app_layer(app_binary)
    path = ["PATH=/bin:/usr/bin"]
    images = {"busybox:1.36": Image([base], {"Cmd": ["sh"], "Env": path})}
    for version in ("v1", "v2"):
        config = {"Entrypoint": ["/bin/app"], "Env": [*path, f"VERSION={version}"], "User": "app"}
        images[f"app:{version}"] = Image([base, app], config)
    return images


if __name__ == "__main__":
    # The registry's URL and the test program; for one image alone, which it is and how it is called there.
    images = build(sys.argv[2])
    for name, ref in [sys.argv[3:]] if sys.argv[3:] else zip(images, images):
        images[name].push(sys.argv[1], *ref.split(":"))
