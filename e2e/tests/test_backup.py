"""Backups made while a client writes, and what is restored from them: with stock kubectl, and with etcdctl for a datastore alone."""

import json
import os
import shutil
import subprocess
import sys

from harness import run, wait
from test_crash import CLIENT
from test_datastore import datastore
from test_history import Postgres

# Creates config maps one after another, and says which were acknowledged.
WRITER = CLIENT + r"""
for i in range(100000):
    if time.monotonic() > end: break
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{tag}-{i}"}, "data": {"i": str(i)}}
    status, made = ask("POST", "configmaps", body)
    if status == 201:
        out.write(f"{made['metadata']['name']} {made['metadata']['resourceVersion']}\n")
"""


def acknowledged(journal):
    with open(journal) as f:
        return {name: int(revision) for name, revision in (line.split() for line in f.read().splitlines(keepends=True) if line.endswith("\n"))}


def isopod(c, *args, check=True, **kw):
    return run(c.net.inside([c.isopod, *args]), check=check, **kw)


def test_a_cluster_comes_back_from_a_backup(fresh):
    c = fresh(agent=False)
    writer = None
    try:
        c.start()
        wait("default service account", lambda: c.kubectl("create", "serviceaccount", "robot"))
        token = c.kubectl("create", "token", "robot").strip()
        journal = f"{c.dir}/journal"
        writer = subprocess.Popen(c.net.inside([sys.executable, "-c", WRITER, c.kubeconfig, "default", journal, "w"]))
        wait("writes", lambda: len(acknowledged(journal)) > 300)
        before = acknowledged(journal)
        made = isopod(c, "backup", "--data-dir", c.data, "--output", c.dir).stdout
        assert len(acknowledged(journal)) > len(before), "the writer went on meanwhile"
        [name] = [n for n in os.listdir(c.dir) if n.startswith("isopod-backup-")]
        backup = f"{c.dir}/{name}"
        assert backup in made and "keys" in made and "in memory only" in made, made
        assert os.stat(backup).st_mode & 0o777 == 0o600
        said = isopod(c, "restore", "--check", backup).stdout
        assert "with the cluster's certificates and keys" in said and "It is whole" in said, said
        refused = isopod(c, "restore", backup, "--data-dir", c.data, check=False)
        assert refused.returncode != 0 and "--force" in refused.stderr, refused
        refused = isopod(c, "restore", backup, "--data-dir", c.data, "--force", check=False)
        assert refused.returncode != 0 and "in use" in refused.stderr, refused
        wait("more writes", lambda: len(acknowledged(journal)) > len(before) + 300)
        writer.terminate()
        writer.wait()
        after = acknowledged(journal)
        newest = max(after.values())
        lost = max(after, key=after.get)
        c.kill()

        old_config = f"{c.dir}/old-kubeconfig"
        shutil.copy(c.kubeconfig, old_config)
        first, c.data = c.data, f"{c.dir}/restored"
        said = isopod(c, "restore", backup, "--data-dir", c.data).stdout
        assert "revisions go on from" in said, said
        c.start()
        found = {o["metadata"]["name"]: int(o["metadata"]["resourceVersion"]) for o in c.get("configmaps")["items"]}
        missing = {n: r for n, r in before.items() if found.get(n) != r}
        assert not missing, f"acknowledged before the backup: {missing}"
        assert lost not in found, "written after the backup"
        # The same cluster: who was let in before is let in again.
        c.kubeconfig, new_config = old_config, c.kubeconfig
        assert c.kubectl("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}") == "system:admin"
        c.kubeconfig = new_config
        review = '{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}'
        ask = ["curl", "-sk", "-H", f"Authorization: Bearer {token}", "-H", "Content-Type: application/json", "-d", review]
        answer = json.loads(run(c.net.inside([*ask, "https://127.0.0.1:6443/apis/authentication.k8s.io/v1/selfsubjectreviews"])).stdout)
        assert answer["status"]["userInfo"]["username"] == "system:serviceaccount:default:robot", answer
        for known in (min(after.values()), newest):
            path = f"/api/v1/namespaces/default/configmaps?watch=1&resourceVersion={known}&timeoutSeconds=5"
            answer = c.kubectl("get", "--raw", path, check=False, full=True)
            assert "too old resource version" in answer.stdout + answer.stderr or "410" in answer.stdout, f"{known}: {answer}"
        c.kubectl("create", "configmap", "new")
        assert int(c.get("configmap", "new")["metadata"]["resourceVersion"]) > newest
        c.stop()
        # In the place of what is there, which is kept.
        said = isopod(c, "restore", backup, "--data-dir", first, "--force").stdout
        aside = said.split("What was there is in ")[1].strip()
        assert os.path.exists(f"{aside}/db/state.db") and os.path.exists(f"{aside}/tls/service.key"), said
        damaged = f"{c.dir}/damaged"
        with open(backup, "rb") as f:
            text = bytearray(f.read())
        text[len(text) // 2] ^= 1
        with open(damaged, "wb") as f:
            f.write(text)
        refused = isopod(c, "restore", damaged, "--data-dir", f"{c.dir}/none", check=False)
        assert refused.returncode != 0 and "damaged" in refused.stderr, refused
        assert not os.path.exists(f"{c.dir}/none/server/db"), "nothing is made of a part"
    finally:
        if writer and writer.poll() is None:
            writer.kill()
            writer.wait()
        c.close()


def test_a_datastore_comes_back_from_a_backup(fresh):
    with datastore(fresh) as d:
        c = d.cluster
        lease = d.ctl("lease", "grant", "600").split()[1]
        d.ctl("put", "a", "1")
        d.ctl("put", "b", "2", f"--lease={lease}")
        revision = d.json("get", "a")["header"]["revision"]
        old = [f"{d.dir}/isopod-backup-2020010{n}T000000Z.isopod" for n in (1, 2, 3)]
        for path in old:
            open(path, "w").close()
        made = isopod(c, "backup", "--data-dir", f"{d.dir}/data", "--output", d.dir, "--keep", "2").stdout
        assert "in memory" not in made and [os.path.exists(p) for p in old] == [False, False, True], made
        piped = run(c.net.inside(["sh", "-c", f"{c.isopod} backup --data-dir {d.dir}/data --output - > {d.dir}/piped"]))
        assert f"revision {revision}, 2 keys" in piped.stderr, piped
        d.ctl("put", "a", "later")
        refused = isopod(c, "restore", f"{d.dir}/piped", "--data-dir", f"{d.dir}/data", "--force", check=False)
        assert refused.returncode != 0 and "in use" in refused.stderr, refused
        d.stop()
        restore = f"{c.isopod} restore - --data-dir {d.dir}/data --force --bump-revision 1000 < {d.dir}/piped"
        run(c.net.inside(["sh", "-c", restore]))
        d.start()
        got = d.json("get", "a")
        assert got["header"]["revision"] == revision + 1000 and got["kvs"][0]["mod_revision"] < revision, got
        assert d.ctl("get", "a", "--print-value-only") == "1\n"
        assert "b" in d.ctl("lease", "timetolive", "--keys", lease)
        old = run(d.args("watch", "a", f"--rev={revision + 1}"), check=False, env=dict(os.environ, ETCDCTL_API="3"))
        assert "required revision has been compacted" in old.stdout + old.stderr, old
        assert json.loads(d.ctl("put", "a", "2", "-w", "json"))["header"]["revision"] == revision + 1001


def test_a_backup_is_restored_into_postgres(fresh):
    with datastore(fresh) as d:
        c, database = d.cluster, None
        d.ctl("put", "a", "1")
        revision = d.json("put", "b", "2")["header"]["revision"]
        backup = f"{d.dir}/backup"
        isopod(c, "backup", "--data-dir", f"{d.dir}/data", "--output", backup)
        d.stop()
        try:
            database = Postgres(c)
            postgres = f"--datastore-endpoint={database.url}"
            said = isopod(c, "restore", backup, postgres, "--bump-revision", "1000").stdout
            assert "Restored into Postgres at 127.0.0.1:5432/postgres" in said, said
            d.start(postgres)
            got = d.json("get", "a")
            assert got["header"]["revision"] == revision + 1000 and got["kvs"][0]["mod_revision"] < revision, got
            d.ctl("put", "a", "later")
            refused = isopod(c, "restore", backup, postgres, "--force", check=False)
            assert refused.returncode != 0 and "end every server" in refused.stderr, refused
            d.stop()
            refused = isopod(c, "restore", backup, postgres, check=False)
            assert refused.returncode != 0 and "--force" in refused.stderr and "nothing was changed" in refused.stderr, refused
            said = isopod(c, "restore", backup, postgres, "--force", "--bump-revision", "2000").stdout
            assert "What was there is in the schema isopod_replaced_" in said, said
            d.start(postgres)
            assert d.ctl("get", "a", "--print-value-only") == "1\n"
            assert d.json("put", "a", "2")["header"]["revision"] == revision + 2001
            d.stop()
        finally:
            if database:
                database.close()
