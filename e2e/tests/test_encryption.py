"""Encryption at rest: what is on the disk, keys that change, and a server that was started without them."""

import base64
import os

PLAIN = "correct-horse-battery-staple"


def on_disk(cluster, text):
    """Is the text anywhere in the datastore's files?"""
    found = False
    for file in os.listdir(f"{cluster.data}/server/db"):
        path = f"{cluster.data}/server/db/{file}"
        if os.path.isfile(path):
            with open(path, "rb") as f:
                found = found or text in f.read()
    return found


def secret(cluster, name="s"):
    data = cluster.get("secret", name)["data"]["password"]
    return base64.b64decode(data).decode()


def create(cluster, name="s"):
    cluster.kubectl("create", "secret", "generic", name, f"--from-literal=password={PLAIN}")


def restart(cluster, *args):
    cluster.stop()
    cluster.server_args = list(args)
    cluster.start()


def configuration(cluster, *names):
    keys = "".join(f"\n      - {{name: {n}, secret: {base64.b64encode(n.encode() * 16).decode()}}}" for n in names)
    path = f"{cluster.dir}/encryption.yaml"
    with open(path, "w") as f:
        f.write(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n"
            f"  providers:\n  - aesgcm:\n      keys:{keys}\n"
        )
    return f"--encryption-provider-config={path}"


def test_secrets_are_not_on_the_disk(fresh):
    cluster = fresh(agent=False, server_args=["--secrets-encryption"])
    try:
        cluster.start()
        create(cluster)
        cluster.kubectl("create", "configmap", "c", "--from-literal=note=for-everybody-to-read")
        restart(cluster, "--secrets-encryption")
        assert secret(cluster) == PLAIN
        encoded = base64.b64encode(PLAIN.encode())
        assert not on_disk(cluster, PLAIN.encode()) and not on_disk(cluster, encoded)
        assert on_disk(cluster, b"for-everybody-to-read"), "the test would see it"
        assert os.stat(f"{cluster.data}/server/encryption.yaml").st_mode & 0o777 == 0o600
        # Without its key it is an error, and not an empty list.
        restart(cluster)
        refused = cluster.kubectl("get", "secrets", check=False, full=True)
        assert refused.returncode != 0 and "identity transformer tried to read encrypted data" in refused.stderr, refused
        # Nor is a new key made for what the old one has encrypted.
        key = f"{cluster.data}/server/encryption.yaml"
        cluster.stop()
        os.rename(key, key + ".lost")
        cluster.server_args = ["--secrets-encryption"]
        try:
            cluster.start()
            raise AssertionError("it started without the key")
        except SystemExit as e:
            assert "holds encrypted Secrets" in str(e) and not os.path.exists(key), e
        os.rename(key + ".lost", key)
        cluster.start()
        assert secret(cluster) == PLAIN
    finally:
        cluster.close()


def test_keys_are_rotated(fresh):
    cluster = fresh(agent=False)
    try:
        cluster.start()
        create(cluster)
        with open(configuration(cluster, "k1").split("=")[1], "a") as f:
            f.write("  - identity: {}\n")
        restart(cluster, f"--encryption-provider-config={cluster.dir}/encryption.yaml")
        assert secret(cluster) == PLAIN, "written before there was encryption"
        rewrite(cluster)
        restart(cluster, configuration(cluster, "k2", "k1"))
        assert secret(cluster) == PLAIN
        rewrite(cluster)
        restart(cluster, configuration(cluster, "k2"))
        assert secret(cluster) == PLAIN, "it was written with the new key by a write that changed nothing else"
        # A mistake is told at the start.
        cluster.stop()
        with open(f"{cluster.dir}/encryption.yaml", "w") as f:
            f.write("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: []\n")
        try:
            cluster.start()
            raise AssertionError("it started")
        except SystemExit as e:
            assert "resources: Required value" in str(e), e
    finally:
        cluster.close()


def rewrite(cluster):
    every = cluster.kubectl("get", "secrets", "--all-namespaces", "-o", "json")
    cluster.kubectl("replace", "-f", "-", input=every)
