"""Stock kubectl, the newest and one five minor versions older, asserting what a user would look at."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time

from harness import deployment, pod, run, wait

VERSIONS = ("1.37", "1.32")


def each(test):
    """Runs the test with every kubectl, each in a namespace of its own."""

    def both(cluster):
        for version in VERSIONS:
            ns = f"{test.__name__.replace('_', '-')}-{version.replace('.', '-')}"
            with cluster.namespace(ns):

                def k(*args, **kw):
                    return cluster.kubectl(*args, version=version, ns=ns, **kw)

                test(cluster, k, ns, version)

    both.__name__ = test.__name__
    return both


def sleeper(cluster, name="sleeper", **spec):
    return pod(name, cluster.image("busybox:1.36"), ["sleep", "10000"], **spec)


def start(cluster, k, *objects):
    k("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
    for o in objects:
        if o["kind"] == "Pod":
            k("wait", "--for=condition=Ready", f"pod/{o['metadata']['name']}", "--timeout=60s", timeout=70)
        else:
            k("rollout", "status", f"deployment/{o['metadata']['name']}", "--timeout=60s", timeout=70)


@each
def test_server_side_apply(cluster, k, ns, version):
    def config(**data):
        return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": data})

    def apply(manager, *args, **data):
        return k("apply", "--server-side", f"--field-manager={manager}", *args, "-f", "-", input=config(**data), check=False, full=True)

    def stored():
        return json.loads(k("get", "configmap", "shared", "-o", "json", "--show-managed-fields"))

    def owners(key):
        entries = stored()["metadata"]["managedFields"]
        return sorted(e["manager"] for e in entries if f"f:{key}" in e["fieldsV1"].get("f:data", {}))

    first = apply("alpha", color="red", size="1")
    assert "configmap/shared serverside-applied" in first.stdout, first
    refused = apply("beta", color="blue")
    assert refused.returncode != 0, refused
    for text in ("Apply failed with 1 conflict: conflict with \"alpha\": .data.color", "--force-conflicts"):
        assert text in refused.stderr, refused.stderr
    assert apply("beta", "--force-conflicts", color="blue").returncode == 0
    assert (stored()["data"], owners("color"), owners("size")) == ({"color": "blue", "size": "1"}, ["beta"], ["alpha"])
    # What a manager no longer says is gone, unless another one says it.
    assert apply("alpha", shape="round").returncode == 0
    assert stored()["data"] == {"color": "blue", "shape": "round"}
    k("patch", "configmap", "shared", "-p", '{"data":{"note":"x"}}', "--field-manager=human")
    assert owners("note") == ["human"]
    diff = k("diff", "--server-side", "--field-manager=beta", "-f", "-", input=config(color="green"), check=False, full=True)
    assert diff.returncode == 1 and "+  color: green" in diff.stdout, diff
    assert stored()["data"]["color"] == "blue"
    # From client-side apply to server-side apply and back.
    client = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "moved"}, "data": {"a": "1"}}
    k("apply", "-f", "-", input=json.dumps(client))
    client["data"] = {"a": "2"}
    assert "serverside-applied" in k("apply", "--server-side", "-f", "-", input=json.dumps(client))
    client["data"] = {"a": "3"}
    assert "configured" in k("apply", "-f", "-", input=json.dumps(client))
    assert k("get", "configmap", "moved", "-o", "jsonpath={.data.a}") == "3"


@each
def test_get_in_all_forms(cluster, k, ns, version):
    start(cluster, k, sleeper(cluster))
    table = k("get", "pods").splitlines()
    assert re.split(r"\s{2,}", table[0]) == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"], table
    assert re.match(r"sleeper\s+1/1\s+Running\s+0\s+\d+s", table[1]), table
    wide = k("get", "pods", "-o", "wide")
    assert all(w in wide for w in ("IP", "NODE", "NOMINATED NODE", "READINESS GATES", "box")), wide
    assert json.loads(k("get", "pod", "sleeper", "-o", "json"))["status"]["phase"] == "Running"
    assert "phase: Running" in k("get", "pod", "sleeper", "-o", "yaml")
    assert k("get", "pod", "sleeper", "-o", "name").strip() == "pod/sleeper"
    assert k("get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}") == "box"
    assert k("get", "pods", "-o", "go-template={{len .items}}") == "1"
    custom = k("get", "pods", "-o", "custom-columns=N:.metadata.name,P:.status.phase").split()
    assert custom == ["N", "P", "sleeper", "Running"], custom
    assert "app=sleeper" in k("get", "pods", "--show-labels")
    assert "sleeper" in k("get", "pods", "-L", "app", "-l", "app in (sleeper)")
    assert k("get", "pods", "--field-selector=status.phase=Failed", "-o", "name") == ""
    assert "sleeper" in k("get", "pods", "-A", "--sort-by=.metadata.name")
    missing = k("get", "pod", "nothing", check=False, full=True)
    assert missing.returncode == 1 and 'pods "nothing" not found' in missing.stderr, missing
    assert "sleeper" in k("get", "pods", "--chunk-size=1")


@each
def test_watch(cluster, k, ns, version):
    args = cluster.kubectl_args("get", "configmaps", "--watch", "-o", "name", version=version, ns=ns)
    watcher = subprocess.Popen(args, stdout=subprocess.PIPE, env=cluster.env())
    try:
        k("create", "configmap", "one", "--from-literal=a=b")
        k("label", "configmap", "one", "x=y")
        k("delete", "configmap", "one")
        seen = ""
        while seen.count("configmap/one\n") < 3:
            ready, _, _ = select.select([watcher.stdout], [], [], 30)
            assert ready, f"the watch is silent after {seen}"
            seen += os.read(watcher.stdout.fileno(), 4096).decode()
    finally:
        watcher.kill()
        watcher.wait()


@each
def test_describe_and_explain(cluster, k, ns, version):
    start(cluster, k, sleeper(cluster))
    text = k("describe", "pod", "sleeper")
    for words in ("Node:             box/", "Status:           Running", "Container ID:  isopod://", "Pulled", "Started"):
        assert words in text, f"{words!r} is not in\n{text}"
    node = k("describe", "node", "box")
    for words in ("Capacity:", "Allocatable:", "Ready", "Non-terminated Pods:", "Container Runtime Version:"):
        assert words in node, f"{words!r} is not in\n{node}"
    explained = k("explain", "pod.spec.containers.livenessProbe")
    assert "Periodic probe" in explained and "initialDelaySeconds" in explained, explained
    assert "FIELDS" in k("explain", "deployment.spec", "--recursive")


@each
def test_apply_diff_edit_patch(cluster, k, ns, version):
    wanted = deployment("web", cluster.image("app:v1"), 1, ports=[{"containerPort": 8080, "name": "http"}])
    assert "created" in k("apply", "-f", "-", input=json.dumps(wanted))
    assert "unchanged" in k("apply", "-f", "-", input=json.dumps(wanted))
    wanted["spec"]["replicas"] = 2
    diff = k("diff", "-f", "-", input=json.dumps(wanted), check=False, full=True)
    assert diff.returncode == 1 and "+  replicas: 2" in diff.stdout, diff
    assert "configured" in k("apply", "-f", "-", input=json.dumps(wanted))
    assert k("diff", "-f", "-", input=json.dumps(wanted)) == ""
    k("patch", "deployment", "web", "-p", '{"spec":{"template":{"spec":{"containers":[{"name":"main","env":[{"name":"A","value":"1"}]}]}}}}')
    k("patch", "deployment", "web", "--type=json", "-p", '[{"op":"replace","path":"/spec/replicas","value":1}]')
    k("patch", "deployment", "web", "--type=merge", "-p", '{"metadata":{"annotations":{"note":"merged"}}}')
    got = json.loads(k("get", "deployment", "web", "-o", "json"))
    container = got["spec"]["template"]["spec"]["containers"][0]
    assert got["spec"]["replicas"] == 1 and got["metadata"]["annotations"]["note"] == "merged"
    assert container["env"] == [{"name": "A", "value": "1"}] and container["ports"][0]["containerPort"] == 8080
    editor = os.path.join(cluster.dir, "editor")
    with open(editor, "w") as f:
        f.write("#!/bin/sh\nsed -i 's/note: merged/note: edited/' $1\n")
    os.chmod(editor, 0o755)
    assert "edited" in k("edit", "deployment", "web", env={"KUBE_EDITOR": editor})
    assert k("get", "deployment", "web", "-o", "jsonpath={.metadata.annotations.note}") == "edited"
    bad = k("patch", "deployment", "web", "--type=json", "-p", '[{"op":"remove","path":"/spec/nothing"}]', check=False, full=True)
    assert bad.returncode != 0, bad
    assert k("apply", "view-last-applied", "deployment/web").startswith("apiVersion: apps/v1")
    k("replace", "-f", "-", input=json.dumps(wanted))


@each
def test_create_label_annotate(cluster, k, ns, version):
    k("create", "configmap", "settings", "--from-literal=a=1", "--from-literal=b=2")
    k("create", "secret", "generic", "password", "--from-literal=p=s3cret")
    k("create", "serviceaccount", "robot")
    k("create", "role", "reader", "--verb=get,list", "--resource=pods")
    k("create", "rolebinding", "robot-reads", "--role=reader", f"--serviceaccount={ns}:robot")
    k("create", "deployment", "made", "--image", cluster.image("app:v1"), "--replicas=1")
    k("create", "job", "once", "--image", cluster.image("busybox:1.36"), "--dry-run=server", "-o", "yaml")
    assert k("get", "secret", "password", "-o", "jsonpath={.data.p}") == "czNjcmV0"
    k("label", "configmap", "settings", "tier=gold")
    k("annotate", "configmap", "settings", "why=because")
    again = k("label", "configmap", "settings", "tier=silver", check=False, full=True)
    assert again.returncode != 0 and "--overwrite" in again.stderr, again
    k("label", "configmap", "settings", "tier=silver", "--overwrite")
    assert k("get", "configmaps", "-l", "tier=silver", "-o", "name").strip() == "configmap/settings"
    k("label", "configmap", "settings", "tier-")
    assert k("get", "configmaps", "-l", "tier", "-o", "name") == ""
    token = k("create", "token", "robot").strip()
    url = f"https://127.0.0.1:6443/api/v1/namespaces/{ns}"
    ask = lambda path: run(cluster.net.inside(["curl", "-sSk", "-H", f"Authorization: Bearer {token}", url + path])).stdout  # noqa: E731
    assert json.loads(ask("/pods"))["kind"] == "PodList"
    refused = json.loads(ask("/secrets"))
    assert refused["code"] == 403 and f'User "system:serviceaccount:{ns}:robot" cannot list resource "secrets"' in refused["message"], refused
    assert k("auth", "can-i", "list", "pods", f"--as=system:serviceaccount:{ns}:robot").strip() == "yes"
    no = k("auth", "can-i", "delete", "pods", f"--as=system:serviceaccount:{ns}:robot", check=False)
    assert no.strip() == "no"


@each
def test_scale_and_rollout(cluster, k, ns, version):
    start(cluster, k, deployment("web", cluster.image("app:v1"), 1, env=[{"name": "DRAIN_SECONDS", "value": "0"}]))
    k("scale", "deployment", "web", "--replicas=3")
    assert "successfully rolled out" in k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
    assert k("get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}") == "3"
    k("set", "image", "deployment/web", f"main={cluster.image('app:v2')}")
    k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
    history = k("rollout", "history", "deployment/web")
    assert re.search(r"^1 .*\n2 ", history, re.M), history
    assert "app:v1" in k("rollout", "history", "deployment/web", "--revision=1")
    k("rollout", "undo", "deployment/web")
    k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
    image = "jsonpath={.spec.template.spec.containers[0].image}"
    assert k("get", "deployment", "web", "-o", image).endswith("app:v1")
    before = k("get", "pods", "-o", "name")
    k("rollout", "restart", "deployment/web")
    k("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
    wait("old pods gone", lambda: not set(before.split()) & set(k("get", "pods", "-o", "name").split()))
    k("rollout", "pause", "deployment/web")
    k("rollout", "resume", "deployment/web")


@each
def test_logs(cluster, k, ns, version):
    script = "echo first; echo oops >&2; while [ ! -e /tmp/go ]; do usleep 50000; done; echo last; sleep 1000"
    start(cluster, k, pod("talker", cluster.image("busybox:1.36"), ["sh", "-c", script]))
    wait("first lines", lambda: k("logs", "talker").splitlines() == ["first", "oops"])
    assert k("logs", "talker", "--tail=1").splitlines() == ["oops"]
    assert re.match(r"\d{4}-\d\d-\d\dT\S+ first", k("logs", "talker", "--timestamps"))
    args = cluster.kubectl_args("logs", "-f", "talker", version=version, ns=ns)
    follower = subprocess.Popen(args, stdout=subprocess.PIPE, text=True, env=cluster.env())
    try:
        assert follower.stdout.readline() == "first\n"
        k("exec", "talker", "--", "touch", "/tmp/go")
        lines = [follower.stdout.readline() for _ in range(2)]
        assert lines == ["oops\n", "last\n"], lines
    finally:
        follower.kill()
        follower.wait()
    assert "last" in k("logs", "-l", "app=talker")


@each
def test_exec(cluster, k, ns, version):
    start(cluster, k, sleeper(cluster))
    assert k("exec", "sleeper", "--", "hostname").strip() == "sleeper"
    failed = k("exec", "sleeper", "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False, full=True)
    assert (failed.returncode, failed.stdout) == (7, "out\n") and "err" in failed.stderr, failed
    assert k("exec", "-i", "sleeper", "--", "cat", input="through\n" * 5000) == "through\n" * 5000
    gone = k("exec", "sleeper", "--", "/no/such/program", check=False, full=True)
    assert gone.returncode != 0 and "/no/such/program" in gone.stderr, gone
    args = cluster.kubectl_args("exec", "-it", "sleeper", "--", "sh", version=version, ns=ns)
    terminal(args, cluster.env(), [("tty\r", "/dev/pts/"), ("stty size\r", "40 100"), ("exit 3\r", None)], code=3)


def terminal(args, env, dialogue, code):
    """Runs a command on a terminal of 40 lines by 100 columns; types and expects."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe(args[0], args, env)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    os.kill(pid, signal.SIGWINCH)
    try:
        expect(fd, "# ")
        for typed, expected in dialogue:
            os.write(fd, typed.encode())
            if expected:
                expect(fd, expected)
    finally:
        end = time.monotonic() + 30
        status = None
        while status is None and time.monotonic() < end:
            done, raw = os.waitpid(pid, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(raw)
            elif select.select([fd], [], [], 0.05)[0]:
                try:
                    os.read(fd, 4096)
                except OSError:
                    pass
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(fd)
    assert status == code, f"ended with {status}, expected {code}"


def expect(fd, text):
    seen = b""
    end = time.monotonic() + 30
    while text.encode() not in seen:
        ready, _, _ = select.select([fd], [], [], max(0, end - time.monotonic()))
        assert ready, f"expected {text!r}, saw {seen!r}"
        seen += os.read(fd, 4096)


@each
def test_attach(cluster, k, ns, version):
    stdin = {"stdin": True, "stdinOnce": True}
    start(cluster, k, pod("listener", cluster.image("busybox:1.36"), ["sh", "-c", "read a; echo got $a"], container=stdin, restartPolicy="Never"))
    assert "got hello" in k("attach", "-i", "listener", input="hello\n")
    k("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/listener", "--timeout=30s")


@each
def test_cp(cluster, k, ns, version):
    start(cluster, k, sleeper(cluster))
    source, back = os.path.join(cluster.dir, "up"), os.path.join(cluster.dir, "down")
    with open(source, "wb") as f:
        f.write(os.urandom(300_000))
    k("cp", source, "sleeper:/tmp/file")
    k("cp", "sleeper:/tmp/file", back)
    with open(source, "rb") as a, open(back, "rb") as b:
        assert a.read() == b.read()


@each
def test_port_forward(cluster, k, ns, version):
    start(cluster, k, deployment("web", cluster.image("app:v1"), 1, ports=[{"containerPort": 8080}]))
    args = cluster.kubectl_args("port-forward", "deployment/web", ":8080", version=version, ns=ns)
    forward = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=cluster.env())
    try:
        line = forward.stdout.readline()
        port = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert port, line
        for _ in range(20):
            body = run(cluster.net.inside(["curl", "-sS", "--max-time", "10", f"http://127.0.0.1:{port[1]}/"])).stdout
            assert body.startswith("web-") and body.endswith(" v1\n"), body
    finally:
        forward.kill()
        forward.wait()


@each
def test_run_expose_wait(cluster, k, ns, version):
    k("run", "app", "--image", cluster.image("app:v1"), "--port=8080", "--labels=app=app")
    k("wait", "--for=condition=Ready", "pod/app", "--timeout=60s", timeout=70)
    k("expose", "pod", "app", "--port=80", "--target-port=8080", "--name=front")
    url = f"http://front.{ns}.svc.cluster.local/"
    out = k("run", "asker", "--rm", "-i", "--restart=Never", "--quiet", "--image", cluster.image("busybox:1.36"), "--", "wget", "-qO-", url)
    assert out.startswith("app v1"), out
    assert k("get", "pods", "-o", "name").strip() == "pod/app"
    k("delete", "pod", "app", "--wait=false")
    k("wait", "--for=delete", "pod/app", "--timeout=60s", timeout=70)


@each
def test_api_resources_and_versions(cluster, k, ns, version):
    resources = k("api-resources")
    for line in (r"^pods\s+po\s+v1\s+true\s+Pod$", r"^deployments\s+deploy\s+apps/v1\s+true\s+Deployment$", r"^ingresses\s+ing\s+networking.k8s.io/v1"):
        assert re.search(line, resources, re.M), resources
    assert "apps/v1\n" in k("api-versions")
    assert "Server Version: v1.37" in k("version")
    assert "is running at" in k("cluster-info")
    assert k("auth", "can-i", "--list").startswith("Resources")
    assert k("auth", "can-i", "create", "deployments").strip() == "yes"
    assert "system:masters" in k("auth", "whoami")


@each
def test_delete_in_all_cascade_modes(cluster, k, ns, version):
    quick = [{"name": "DRAIN_SECONDS", "value": "0"}]
    for mode in ("background", "foreground", "orphan"):
        start(cluster, k, deployment(mode, cluster.image("app:v1"), 1, env=quick))
        k("delete", "deployment", mode, f"--cascade={mode}", timeout=90)
        sets = k("get", "replicasets", "-l", f"app={mode}", "-o", "name").split()
        if mode == "foreground":
            assert not sets and not k("get", "pods", "-l", f"app={mode}", "-o", "name"), "dependents outlived a foreground delete"
        if mode == "background":
            wait("dependents gone", lambda: not k("get", "replicasets,pods", "-l", f"app={mode}", "-o", "name"))
        if mode == "orphan":
            assert len(sets) == 1, sets
            refs = k("get", sets[0], "-o", "jsonpath={.metadata.ownerReferences}")
            assert refs == "", refs
            k("delete", sets[0])
    k("create", "configmap", "a")
    k("create", "configmap", "b")
    k("delete", "configmaps", "--all")
    k("delete", "pod", "--all", "--force", "--grace-period=0")


def test_cordon_drain_taint(cluster):
    with cluster.namespace("drain"):
        for version in VERSIONS:

            def k(*args, version=version, **kw):
                return cluster.kubectl(*args, version=version, **kw)

            cluster.apply(deployment("web", cluster.image("app:v1"), 2, env=[{"name": "DRAIN_SECONDS", "value": "0"}]), ns="drain")
            k("rollout", "status", "deployment/web", "--timeout=60s", ns="drain", timeout=70)
            k("cordon", "box")
            assert "SchedulingDisabled" in k("get", "node", "box")
            old = set(k("get", "pods", "-o", "name", ns="drain").split())
            k("drain", "box", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s", timeout=70)
            pods = wait("two pods pending", lambda: [p for p in cluster.get("pods", ns="drain")["items"] if p["status"]["phase"] == "Pending"])
            assert not old & {f"pod/{p['metadata']['name']}" for p in pods}
            wait("why", lambda: "1 node(s) were unschedulable" in k("get", "events", ns="drain"))
            k("uncordon", "box")
            k("rollout", "status", "deployment/web", "--timeout=60s", ns="drain", timeout=70)
            k("taint", "node", "box", "colour=blue:NoSchedule")
            k("delete", "pods", "--all", ns="drain")
            wait("untolerated taint", lambda: "untolerated taint" in k("get", "events", ns="drain"))
            k("taint", "node", "box", "colour-")
            k("rollout", "status", "deployment/web", "--timeout=60s", ns="drain", timeout=70)
