"""busybox as its authors publish it, static, built from the source package of Debian's newer release.

Debian's own binary will not do: its shell drops environment variables whose names are no shell identifiers, and upstream's
image keeps them. The tarball is the authors', unpatched; the configuration is their default."""

import glob
import os
import re
import shutil
import subprocess
import tempfile

VERSION, RELEASE = "1.37.0", "trixie"
SOURCES = "/etc/apt/sources.list.d/debian.sources"
# Does not compile with the kernel headers of today.
WITHOUT = "TC"


def binary(cache):
    """Path of the program, made once."""
    path = f"{cache}/busybox-{VERSION}"
    if os.path.exists(path):
        return path
    print(f"building busybox {VERSION}", flush=True)
    os.makedirs(cache, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        _source(work)
        tree = f"{work}/busybox-{VERSION}"
        _run(["tar", "xf", f"busybox_{VERSION}.orig.tar.bz2"], work)
        _run(["make", "defconfig"], tree)
        with open(f"{tree}/.config") as f:
            config = f.read()
        config = config.replace("# CONFIG_STATIC is not set", "CONFIG_STATIC=y")
        config = config.replace(f"CONFIG_{WITHOUT}=y", f"# CONFIG_{WITHOUT} is not set")
        with open(f"{tree}/.config", "w") as f:
            f.write(config)
        _run(["nice", "-n", "5", "make", f"-j{os.cpu_count()}", "busybox"], tree)
        shutil.copy(f"{tree}/busybox", f"{path}.part")
    os.rename(f"{path}.part", path)
    return path


def _source(work):
    """Downloads the source package, with package lists of its own: the machine's stay as they are."""
    with open(SOURCES) as f:
        uri = re.search(r"^URIs: *(\S+)", f.read(), re.M).group(1)
    for sub in ("parts", "lists", "cache"):
        os.makedirs(f"{work}/{sub}")
    with open(f"{work}/parts/source.sources", "w") as f:
        f.write(f"Types: deb-src\nURIs: {uri}\nSuites: {RELEASE}\nComponents: main\n")
        f.write("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n")
    apt = [
        "apt-get", "-q", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={work}/parts",
        "-o", f"Dir::State::lists={work}/lists", "-o", f"Dir::Cache={work}/cache", "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip
    _run([*apt, "update"], work)
    _run([*apt, "source", "--download-only", "busybox"], work)
    if not glob.glob(f"{work}/busybox_{VERSION}.orig.tar.*"):
        raise RuntimeError(f"Debian {RELEASE} has another busybox than {VERSION}: {os.listdir(work)}")


def _run(command, where):
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
