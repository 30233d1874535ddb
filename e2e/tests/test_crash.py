"""A pulled plug: the server is killed at any moment, again and again, under load."""

import json
import random
import subprocess

from harness import Failure, deployment, pod, wait

KILLS = 50

# Creates and updates config maps as fast as one client can, over one connection, and writes down what was acknowledged.
WRITER = r"""
import base64, http.client, json, ssl, sys, time, re
kubeconfig, ns, journal, tag = sys.argv[1:5]
text = open(kubeconfig).read()
field = lambda n: base64.b64decode(re.search(n + r":\s*(\S+)", text)[1])
open(journal + ".crt", "wb").write(field("client-certificate-data") + b"\n" + field("client-key-data"))
context = ssl._create_unverified_context(); context.load_cert_chain(journal + ".crt")
out, n = open(journal, "a", buffering=1), 0
end = time.monotonic() + 600
connection = None
while time.monotonic() < end:
    n += 1
    body = json.dumps({"metadata": {"name": f"{tag}-{n}"}, "data": {"n": str(n)}})
    try:
        if connection is None:
            connection = http.client.HTTPSConnection("127.0.0.1", 6443, context=context, timeout=10)
        connection.request("POST", f"/api/v1/namespaces/{ns}/configmaps", body, {"Content-Type": "application/json"})
        answer = connection.getresponse(); data = answer.read()
        if answer.status == 201:
            out.write(f"{tag}-{n} {json.loads(data)['metadata']['resourceVersion']}\n")
    except (OSError, http.client.HTTPException):
        connection = None
        time.sleep(0.02)
"""

# Watches config maps by hand: resumes at the last revision seen, and writes down every event.
WATCHER = r"""
import base64, http.client, json, ssl, sys, time, re
kubeconfig, ns, journal = sys.argv[1:4]
text = open(kubeconfig).read()
field = lambda n: base64.b64decode(re.search(n + r":\s*(\S+)", text)[1])
open(journal + ".crt", "wb").write(field("client-certificate-data") + b"\n" + field("client-key-data"))
context = ssl._create_unverified_context(); context.load_cert_chain(journal + ".crt")
out, path = open(journal, "a", buffering=1), f"/api/v1/namespaces/{ns}/configmaps"
end, version = time.monotonic() + 600, None
while time.monotonic() < end:
    try:
        c = http.client.HTTPSConnection("127.0.0.1", 6443, context=context, timeout=30)
        if version is None:
            c.request("GET", path); listed = json.loads(c.getresponse().read())
            for item in listed["items"]:
                out.write(f"LISTED {item['metadata']['name']} {item['metadata']['resourceVersion']}\n")
            version = listed["metadata"]["resourceVersion"]
        c.request("GET", f"{path}?watch=1&allowWatchBookmarks=true&resourceVersion={version}")
        answer = c.getresponse()
        for line in answer:
            event = json.loads(line)
            if event["type"] == "ERROR":
                assert event["object"]["code"] == 410, event
                out.write("EXPIRED\n"); version = None; break
            version = event["object"]["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK":
                out.write(f"{event['type']} {event['object']['metadata']['name']} {version}\n")
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        time.sleep(0.02)
"""


def lines(path):
    try:
        with open(path) as f:
            return [line.split() for line in f.read().splitlines()]
    except FileNotFoundError:
        return []


def test_fifty_kills_under_load(fresh):
    cluster = fresh().start()
    rng = random.Random(20)
    children = []
    try:
        ns = "load"
        cluster.kubectl("create", "namespace", ns)
        wait("service account", lambda: cluster.kubectl("get", "sa", "default", ns=ns))
        cluster.apply(deployment("web", cluster.image("app:v1"), 2, env=[{"name": "DRAIN_SECONDS", "value": "0"}]), ns=ns)
        cluster.kubectl("rollout", "status", "deployment/web", "--timeout=60s", ns=ns, timeout=70)
        # Ends by itself, with a code, while no server is there to see it.
        leaver = "while [ ! -e /share/go ]; do usleep 20000; done; exit 42"
        share = {"name": "share", "hostPath": {"path": cluster.dir}}
        mount = {"volumeMounts": [{"name": "share", "mountPath": "/share"}]}
        cluster.apply(pod("leaver", cluster.image("busybox:1.36"), ["sh", "-c", leaver], container=mount, volumes=[share], restartPolicy="Never"), ns=ns)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/leaver", "--timeout=60s", ns=ns, timeout=70)
        before = containers(cluster, ns)

        def child(script, *args):
            done = subprocess.Popen(cluster.net.inside(["python3", "-c", script, cluster.kubeconfig, ns, *args]), stderr=subprocess.PIPE)
            children.append(done)

        for n in range(3):
            child(WRITER, f"{cluster.dir}/writer{n}", f"w{n}")
        child(WATCHER, f"{cluster.dir}/watcher")
        acknowledged = lambda: [e for n in range(3) for e in lines(f"{cluster.dir}/writer{n}")]  # noqa: E731
        for kill in range(KILLS):
            # Between 5 and 60 more writes are acknowledged before the next kill: any moment, but never an idle one.
            goal = len(acknowledged()) + rng.randrange(5, 60)
            wait(f"load before kill {kill}", lambda: len(acknowledged()) >= goal)  # noqa: B023
            cluster.kill()
            if kill == KILLS // 2:
                open(f"{cluster.dir}/go", "w").close()
            cluster.start(wait_ready=False)
        cluster.wait_ready()
        for c in children[:3]:
            c.kill()
            c.wait()
        written = {name: int(version) for name, version in acknowledged()}
        listed = {o["metadata"]["name"]: int(o["metadata"]["resourceVersion"]) for o in cluster.get("configmaps", ns=ns)["items"]}
        lost = [n for n in written if n not in listed]
        assert not lost, f"{len(lost)} of {len(written)} acknowledged writes are lost: {lost[:5]}"
        changed = [n for n in written if written[n] != listed[n]]
        assert not changed, f"revisions changed: {[(n, written[n], listed[n]) for n in changed[:5]]}"
        assert len(set(listed.values())) == len(listed), "a revision was handed out twice"
        check_watcher(cluster, listed)
        after = containers(cluster, ns)
        assert before["web"] == after["web"], f"containers did not keep running: {before} {after}"
        wait("leaver's code", lambda: exit_code(cluster, ns, "leaver") == 42)
    except BaseException:
        cluster.explain("load")
        raise
    finally:
        for c in children:
            c.kill()
            c.wait()
        cluster.close()


def containers(cluster, ns):
    """Container ids of the web pods, with their restart counts."""
    found = {"web": sorted((s["containerID"], s["restartCount"]) for p in cluster.get("pods", "-l", "app=web", ns=ns)["items"] for s in p["status"]["containerStatuses"])}
    if len(found["web"]) != 2:
        raise Failure(f"expected two web pods: {found}")
    return found


def exit_code(cluster, ns, name):
    return cluster.get("pod", name, ns=ns)["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]


def check_watcher(cluster, listed):
    """The watcher saw every object that is there, each event once and in order between two relists."""
    path = f"{cluster.dir}/watcher"
    wait("the watcher has caught up", lambda: {e[1] for e in lines(path) if len(e) == 3} >= set(listed))
    last = 0
    for event in lines(path):
        if event[0] in ("EXPIRED", "LISTED"):
            last = 0 if event[0] == "EXPIRED" else last
            continue
        version = int(event[2])
        assert version > last, f"out of order or twice: {event} after {last}"
        last = version


def test_a_stopped_server_leaves_pods_running(fresh):
    cluster = fresh().start()
    try:
        cluster.apply(deployment("web", cluster.image("app:v1"), 2), ns="default")
        cluster.kubectl("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
        before = containers(cluster, "default")
        cluster.stop()
        cluster.start()
        wait("the same containers", lambda: containers(cluster, "default") == before)
        assert json.loads(cluster.kubectl("get", "deployment", "web", "-o", "json"))["status"]["readyReplicas"] == 2
    finally:
        cluster.close()
