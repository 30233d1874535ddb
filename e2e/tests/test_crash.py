"""A pulled plug: the server is killed at any moment, again and again, under load."""

import json
import random
import subprocess

from harness import Failure, deployment, pod, wait
from test_cleanup import machine

KILLS = 50

# What every client below begins with: a connection to the API server with the administrator's certificate.
CLIENT = r"""
import base64, http.client, json, random, re, signal, ssl, sys, time
kubeconfig, ns, journal, tag = sys.argv[1:5]
text = open(kubeconfig).read()
field = lambda n: base64.b64decode(re.search(n + r":\s*(\S+)", text)[1])
open(journal + ".crt", "wb").write(field("client-certificate-data") + b"\n" + field("client-key-data"))
context = ssl._create_unverified_context(); context.load_cert_chain(journal + ".crt")
out, end = open(journal, "a", buffering=1), time.monotonic() + 600
signal.signal(signal.SIGTERM, lambda *_: globals().update(end=0))
connection = None
# Status and object; status 0 where no whole answer came.
def ask(method, path, body=None):
    global connection
    try:
        if connection is None:
            connection = http.client.HTTPSConnection("127.0.0.1", 6443, context=context, timeout=10)
        connection.request(method, f"/api/v1/namespaces/{ns}/{path}", body and json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError):
        connection = None
        time.sleep(0.02)
        return 0, None
"""

# Creates, updates and deletes config maps as fast as one client can, and writes down what was acknowledged, and what was
# asked without an answer: an object about which it is not sure is left alone.
WRITER = CLIENT + r"""
rng, n, there = random.Random(tag), 0, []
while time.monotonic() < end:
    n += 1
    what = rng.choice(("create", "create", "update", "delete")) if len(there) > 20 else "create"
    name = f"{tag}-{n}" if what == "create" else there.pop(rng.randrange(len(there)))
    body = {"metadata": {"name": name}, "data": {"n": str(n)}}
    if what == "create":
        code, got = ask("POST", "configmaps", body)
    elif what == "update":
        code, got = ask("PUT", f"configmaps/{name}", body)
    else:
        code, got = ask("DELETE", f"configmaps/{name}")
    if code in (200, 201):
        out.write(f"{what} {name} {0 if what == 'delete' else got['metadata']['resourceVersion']} {n}\n")
        if what != "delete":
            there.append(name)
    else:
        # 404 and 409 would be writes that were acknowledged and lost.
        out.write(f"{'unsure' if code in (0, 429) or code >= 500 else 'wrong'} {name} {what} {code}\n")
"""

# Starts pods and ends them, so that every kill finds some half made and some half gone.
CHURN = CLIENT + r"""
n, there = 0, []
while time.monotonic() < end:
    n += 1
    name = f"{tag}-{n}"
    container = {"name": "main", "image": sys.argv[5], "command": ["sleep", "10000"]}
    body = {"metadata": {"name": name, "labels": {"app": tag}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}
    code = ask("POST", "pods", body)[0]
    if code == 201:
        there.append(name)
    while len(there) > 4:
        if ask("DELETE", f"pods/{there[0]}?gracePeriodSeconds={n % 2}")[0] in (200, 404):
            out.write(f"{there.pop(0)}\n")
    # A server that was not there has been waited for already.
    if code:
        time.sleep(0.3)
"""

# Watches config maps by hand: resumes at the last revision seen, and writes down every event.
WATCHER = CLIENT + r"""
version = None
while time.monotonic() < end:
    try:
        if version is None:
            code, listed = ask("GET", "configmaps")
            if code != 200:
                continue
            out.write("LISTED\n")
            for item in listed["items"]:
                out.write(f"ITEM {item['metadata']['name']} {item['metadata']['resourceVersion']}\n")
            version = listed["metadata"]["resourceVersion"]
        c = http.client.HTTPSConnection("127.0.0.1", 6443, context=context, timeout=30)
        c.request("GET", f"/api/v1/namespaces/{ns}/configmaps?watch=1&allowWatchBookmarks=true&resourceVersion={version}")
        answer = c.getresponse()
        for line in answer:
            event = json.loads(line)
            if event["type"] == "ERROR":
                assert event["object"]["code"] == 410, event
                version = None
                break
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
    ns, children = "load", []
    try:
        cluster.kubectl("create", "namespace", ns)
        wait("service account", lambda: cluster.kubectl("get", "sa", "default", ns=ns))
        # A first pod has come and gone: what the node keeps from then on is no leak.
        cluster.apply(pod("first", cluster.image("busybox:1.36"), ["sleep", "1000"]), ns=ns)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/first", "--timeout=60s", ns=ns, timeout=70)
        cluster.kubectl("delete", "pod", "first", ns=ns)
        bare = machine(cluster)
        cluster.apply(deployment("web", cluster.image("app:v1"), 2, env=[{"name": "DRAIN_SECONDS", "value": "0"}]), ns=ns)
        cluster.kubectl("rollout", "status", "deployment/web", "--timeout=60s", ns=ns, timeout=70)
        # Ends by itself, with a code, while no server is there to see it.
        leaver = "while [ ! -e /share/go ]; do usleep 20000; done; exit 42"
        share = {"name": "share", "hostPath": {"path": cluster.dir}}
        mount = {"volumeMounts": [{"name": "share", "mountPath": "/share"}]}
        cluster.apply(pod("leaver", cluster.image("busybox:1.36"), ["sh", "-c", leaver], container=mount, volumes=[share], restartPolicy="Never"), ns=ns)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/leaver", "--timeout=60s", ns=ns, timeout=70)
        leaving = cluster.processes(cluster.get("pod", "leaver", ns=ns)["status"]["containerStatuses"][0]["containerID"])[0]
        before = containers(cluster, ns)

        def child(script, tag, *args):
            command = ["python3", "-c", script, cluster.kubeconfig, ns, f"{cluster.dir}/{tag}", tag, *args]
            children.append(subprocess.Popen(cluster.net.inside(command), stderr=subprocess.PIPE))

        for n in range(3):
            child(WRITER, f"w{n}")
        child(CHURN, "churn", cluster.image("busybox:1.36"))
        child(WATCHER, "watcher")
        writes = lambda: [e for n in range(3) for e in lines(f"{cluster.dir}/w{n}")]  # noqa: E731
        for kill in range(KILLS):
            # Between 5 and 60 more writes are acknowledged before the next kill: any moment, but never an idle one.
            goal = len(writes()) + rng.randrange(5, 60)
            wait(f"load before kill {kill}", lambda: len(writes()) >= goal)  # noqa: B023
            # The faster the writes, the sooner the kills: pods keep up with them.
            wait(f"pods gone before kill {kill}", lambda: len(lines(f"{cluster.dir}/churn")) >= kill // 4)  # noqa: B023
            cluster.kill()
            if kill == KILLS // 2:
                open(f"{cluster.dir}/go", "w").close()
                wait("the leaver has left", lambda: not running(leaving))
            cluster.start(wait_ready=False)
            if kill % 3 == 0:
                # Somewhere in its start: recovery, bootstrap, adoption of the pods that are there.
                try:
                    cluster.server.wait(rng.uniform(0, 0.3))
                except subprocess.TimeoutExpired:
                    cluster.kill()
                    cluster.start(wait_ready=False)
        cluster.wait_ready()
        for c in children[:-1]:
            assert c.poll() is None, c.communicate()
            # With an answer to its last question.
            c.terminate()
            assert c.wait(30) == 0, c.communicate()
        listed = {o["metadata"]["name"]: o for o in cluster.get("configmaps", ns=ns)["items"]}
        check_writes(writes(), listed)
        check_watcher(cluster, {name: int(o["metadata"]["resourceVersion"]) for name, o in listed.items()})
        after = containers(cluster, ns)
        assert before["web"] == after["web"], f"containers did not keep running: {before} {after}"
        wait("leaver's code", lambda: exit_code(cluster, ns, "leaver") == 42)
        # What was half made when the server died is found and taken away.
        cluster.kubectl("delete", "deployment", "web", ns=ns)
        cluster.kubectl("delete", "pods", "--all", "--timeout=60s", ns=ns, timeout=70)
        wait("nothing is left of the pods", lambda: no_more_than(cluster, bare, machine(cluster)), 30)
    except BaseException:
        cluster.explain("load")
        raise
    finally:
        for c in children:
            c.kill()
            c.wait()
        cluster.close()


def running(pid):
    """Whether the process is there, and no zombie that nobody has looked at."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(") ", 1)[1][0] not in "ZX"
    except OSError:
        return False


def no_more_than(cluster, bare, now):
    """What pods have is gone. Routes say how their links are, and other cgroups of the machine are its own."""
    kinds = ("mount", "link", "table", "process", "cgroup")
    left = {line for line in now - bare if line.startswith(kinds) and (cluster.cgroup in line or not line.startswith("cgroup"))}
    if left:
        raise Failure(f"left behind: {sorted(left)}")
    return True


def check_writes(writes, listed):
    """Every acknowledged write is there, and nothing else but what was asked without an answer."""
    wrong = [w for w in writes if w[0] == "wrong"]
    assert not wrong, f"objects whose writes were acknowledged: {wrong[:5]}"
    kinds = {w[0] for w in writes}
    assert {"create", "update", "delete"} <= kinds, kinds
    known, unsure = {}, {}
    for what, name, version, n in writes:
        if what == "unsure":
            unsure[name] = version
        else:
            known[name] = None if what == "delete" else (int(version), n)
    shown = {name: (int(o["metadata"]["resourceVersion"]), o.get("data", {}).get("n")) for name, o in listed.items()}
    lost = [name for name, want in known.items() if want and name not in shown and unsure.get(name) != "delete"]
    assert not lost, f"{len(lost)} of {len(known)} acknowledged objects are lost: {lost[:5]}"
    back = [name for name, want in known.items() if not want and name in shown]
    assert not back, f"deleted objects are back: {back[:5]}"
    changed = [(name, want, shown[name]) for name, want in known.items() if want and name in shown and name not in unsure and shown[name] != want]
    assert not changed, f"objects are not as they were acknowledged: {changed[:5]}"
    older = [name for name in unsure if known.get(name) and name in shown and shown[name][0] < known[name][0]]
    assert not older, f"objects are older than what was acknowledged: {older[:5]}"
    assert set(shown) <= set(known) | set(unsure) | {"kube-root-ca.crt"}, "objects that nobody made"
    assert len({version for version, _ in shown.values()}) == len(shown), "a revision was handed out twice"


def containers(cluster, ns):
    """Container ids of the web pods, with their restart counts."""
    found = {"web": sorted((s["containerID"], s["restartCount"]) for p in cluster.get("pods", "-l", "app=web", ns=ns)["items"] for s in p["status"]["containerStatuses"])}
    if len(found["web"]) != 2:
        raise Failure(f"expected two web pods: {found}")
    return found


def exit_code(cluster, ns, name):
    return cluster.get("pod", name, ns=ns)["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]


def check_watcher(cluster, listed):
    """What the watcher saw leads to what is there; each event came once and in order between two lists."""
    path = f"{cluster.dir}/watcher"

    def replayed():
        seen, last = {}, 0
        for event in lines(path):
            if event[0] == "LISTED":
                seen, last = {}, 0
                continue
            what, name, version = event[0], event[1], int(event[2])
            if what != "ITEM":
                assert version > last, f"out of order or twice: {event} after {last}"
                known = name in seen
                assert known == (what != "ADDED"), f"{event}, which was {'' if known else 'not '}there"
                last = version
            if what == "DELETED":
                del seen[name]
            else:
                seen[name] = version
        return seen

    def caught_up():
        different = set(replayed().items()) ^ set(listed.items())
        if different:
            raise Failure(f"the watcher sees it otherwise: {sorted(different)[:6]}")
        return True

    wait("the watcher has caught up", caught_up)


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
